"""List the inputs of a classification as files, and cut the files into pieces that are read together."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats import container_kind, pieces
from fmnist_model.formats.idx_images import label_file_name
from fmnist_model.formats.interface import ContainerPiece
from fmnist_model.formats.uri_list import is_list_name, is_uri_list, read_list, resolve
from fmnist_model.images.decode import is_image_name
from infra.errors import RequestError
from infra.storage.input_files import (
    NOT_THERE,
    InputFile,
    InputNotFound,
    InputUnreadable,
    filesystem_of,
    list_input_files,
    open_input,
    stat_input,
)
from infra.storage.tables.plan import PIECE_SCHEMA, Piece
from infra.storage.tables.staged_inputs import FILE_SCHEMA
from infra.storage.uris import possible_uris, real_folder
from tasks.classification.options import ReadOptions

if TYPE_CHECKING:
    from fmnist_model.formats import ContainerKind

_BATCH_FILES = 16_384
"""Files in a record batch."""
_THREADS = 16
"""Files inspected at the same time. For remote files, most of the time is spent waiting."""
_FOLDERS = 10_000
"""Folders of listed files whose symbolic links are resolved only once."""
_PIECE_IMAGES, _PIECE_BYTES = 20_000, 256 * 2**20
"""Approximate size of a piece of a container: whichever is reached first."""
_DOWNLOAD_BYTES = 8 * 2**20
"""Largest container on S3 to download as a whole. A request takes about as long as transferring this many bytes."""


def list_files(locations: Iterable[str], options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """List the files that hold images, in the order in which the store returns them.

    Args:
        locations: paths or URIs of files, folders, globs or lists of images.
        options: options for reading the images.

    Yields:
        Batches of rows of `FILE_SCHEMA`.

    Raises:
        InputNotFound: a location doesn't exist, or holds no images.
        InvalidDataset: a list of images can't be read.
    """
    for location in locations:
        found = False
        for batch in _to_batches(_files(location, options)):
            found = True
            yield batch
        if not found:
            raise InputNotFound(
                f"{location} holds no images: neither image files nor containers (Parquet, tar, IDX). To classify the "
                "images in a list, give the path of the list itself (.txt, .csv, .tsv or .parquet)."
            )


def pieces_of(files: Iterable[pa.RecordBatch], options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """Cut files into pieces, in the order of the files.

    An unreadable container becomes one piece with one image. That image is later quarantined under the container's URI.

    Args:
        files: rows of `FILE_SCHEMA`.
        options: options for reading the images.

    Yields:
        Batches of rows of `PIECE_SCHEMA`.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        for batch in files:
            kinds = batch.column("kind").to_pylist()
            containers = [row for row, kind in enumerate(kinds) if kind != "image"]
            cut = threads.map(lambda row, batch=batch: _cut_container(_listed_file(batch, row), options), containers)
            position = 0
            for row, found in zip(containers, cut, strict=True):
                yield from _image_pieces(batch.slice(position, row - position))
                yield found
                position = row + 1
            yield from _image_pieces(batch.slice(position))


def check_inputs(locations: Iterable[str], options: ReadOptions) -> None:
    """Check that every location holds images, before Ray and Prefect start.

    Raises:
        InputNotFound: a location doesn't exist, or holds no images.
        InvalidDataset: the first container of a location is damaged.
        RequestError: the first container of a location can't be opened.
    """
    for location in locations:
        first = _listed_file(next(list_files([location], options)), 0)
        if first.kind != "image":
            try:
                next(_container_pieces(first, options), None)
            except InputUnreadable as reason:
                raise RequestError(f"{first.uri} can't be read: {reason}.") from None


@contextmanager
def open_container(uri: str, kind: str, *, download: bool = False) -> Iterator[tuple[Any, Any | None]]:
    """Open a container, and the file with its labels if it has one.

    Args:
        uri: URI of the container.
        kind: kind of container.
        download: whether to download a small container from S3 in one request. Use it to read images, not to read the
            footer alone.

    Yields:
        The container and its labels, as random-access `pyarrow.NativeFile`. The second is None without a label file.

    Raises:
        InputUnreadable: the file is gone, or reading it isn't permitted.
        InputsUnavailable: S3 or this machine fails.
    """
    with ExitStack() as opened:
        labels = _label_file(uri) if kind == "idx" else None
        file = opened.enter_context(open_input(uri, fetch=_DOWNLOAD_BYTES if download else 0))
        yield file, opened.enter_context(open_input(labels)) if labels else None


class _ListedFile(NamedTuple):
    """A row of `FILE_SCHEMA`."""

    uri: str
    fingerprint: str
    kind: str
    size: int
    label: int | None = None


def _listed_file(files: pa.RecordBatch, row: int) -> _ListedFile:
    return _ListedFile(**files.slice(row, 1).to_pylist()[0])


def _to_batches(files: Iterator[_ListedFile]) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(files, _BATCH_FILES)):
        columns = zip(*rows, strict=True)
        yield pa.record_batch(
            [pa.array(column, field.type) for column, field in zip(columns, FILE_SCHEMA, strict=True)],
            schema=FILE_SCHEMA,
        )


def _files(location: str, options: ReadOptions) -> Iterator[_ListedFile]:
    named = possible_uris(location) if location.lower().endswith(".parquet") else []
    for file in list_input_files(location):
        if _is_list(file, location, named):
            yield from _files_in_list(file, options)
        elif (kind := _kind(file.uri)) is not None:
            yield _ListedFile(file.uri, file.fingerprint, kind, file.size)


def _kind(uri: str) -> str | None:
    return "image" if is_image_name(uri) else container_kind(uri)


def _is_list(file: InputFile, location: str, named: list[str]) -> bool:
    """Return whether a file is a list. A Parquet file can only be one if the location names it and not its folder."""
    if is_list_name(location):
        return is_list_name(file.uri)
    if file.uri not in named:
        return False
    filesystem, path = filesystem_of(file.uri)
    try:
        return is_uri_list(pq.read_schema(path, filesystem=filesystem))
    except (pa.ArrowException, OSError, UnicodeDecodeError):  # the container's reader reports the error
        return False


def _files_in_list(file: InputFile, options: ReadOptions) -> Iterator[_ListedFile]:
    filesystem, path = filesystem_of(file.uri)
    list_location = path if path.startswith("/") else f"s3://{path}"
    cached_folder = lru_cache(_FOLDERS)(real_folder)
    label_column = options.label_column if file.uri.lower().endswith((".csv", ".tsv", ".parquet")) else None
    with filesystem.open_input_file(path) as opened, ThreadPoolExecutor(_THREADS) as threads:
        for entries in read_list(opened, path.rpartition("/")[2], file.uri, label_column=label_column):
            listed = [
                possible_uris(resolve(location, list_location), resolve_folder=cached_folder)
                for location in entries.locations
            ]
            for (uri, found), label in zip(threads.map(_find, listed), entries.labels, strict=True):
                kind = (_kind(uri) or "image") if found else "image"
                fingerprint, size = (found.fingerprint, found.size) if found else (NOT_THERE, 0)
                yield _ListedFile(uri, fingerprint, kind, size, label)


def _find(uris: list[str]) -> tuple[str, InputFile | None]:
    """Return the first URI that a file has, and the file. Without a file, return the first URI."""
    for uri in uris:
        with suppress(InputUnreadable):  # reading the image reports the reason, and the rest of the list is classified
            if found := stat_input(uri):
                return uri, found
    return uris[0], None


def _image_pieces(files: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if len(files):
        zeros, ones = pa.repeat(pa.scalar(0, pa.int64()), len(files)), pa.repeat(pa.scalar(1, pa.int64()), len(files))
        uri, fingerprint, kind, size, label = files.columns
        yield pa.record_batch([uri, fingerprint, kind, zeros, ones, zeros, size, label], schema=PIECE_SCHEMA)


def _cut_container(file: _ListedFile, options: ReadOptions) -> pa.RecordBatch:
    kind = file.kind
    try:
        found = list(_container_pieces(file, options))
    except (InputUnreadable, InvalidDataset):
        kind, found = "unreadable", [ContainerPiece(0, 1, 0, 0)]
    return Piece.to_arrow(
        Piece(file.uri, file.fingerprint, kind, piece.first_row, piece.rows, piece.offset, piece.size)
        for piece in found
    )


def _container_pieces(file: _ListedFile, options: ReadOptions) -> Iterator[ContainerPiece]:
    with open_container(file.uri, file.kind) as (opened, labels):
        yield from pieces(
            cast("ContainerKind", file.kind),
            opened,
            file.uri,
            target_rows=_PIECE_IMAGES,
            target_bytes=_PIECE_BYTES,
            image_column=options.image_column,
            label_column=options.label_column,
            labels=labels,
        )


def _label_file(uri: str) -> str | None:
    folder, _, name = uri.rpartition("/")
    labels = label_file_name(name)
    if labels is None:
        return None
    # One of the two files may be gzipped, and the other not.
    other = labels.removesuffix(".gz") if labels.endswith(".gz") else f"{labels}.gz"
    found = (f"{folder}/{candidate}" for candidate in (labels, other))
    return next((candidate for candidate in found if stat_input(candidate)), None)
