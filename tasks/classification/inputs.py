"""The inputs of a classification: what a location names, as files by kind; and files as pieces to be read."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats import container_kind, pieces
from fmnist_model.formats.idx_images import label_file_name
from fmnist_model.formats.interface import ContainerPiece
from fmnist_model.formats.uri_list import is_list_name, is_uri_list, read_list, resolve
from fmnist_model.images.decode import is_image_name
from infra.errors import RequestError
from infra.storage.batch_plan import PIECE_SCHEMA
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
from infra.storage.staged_inputs import FILE_SCHEMA
from tasks.classification.options import ReadOptions

_ROWS = 16_384
"""Files in a record batch."""
_THREADS = 16
"""That look at files at once: most of the time is spent waiting where they are far away."""
_PIECE_ROWS, _PIECE_BYTES = 20_000, 256 * 2**20
"""A container is cut into pieces of about so many images, or bytes where images are large."""
_FETCHED_WHOLE = 8 * 2**20
"""Bytes of a container on S3, at most: each request takes about as long as it takes to send them."""


def list_files(locations: Iterable[str], options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """The files that hold images, by `FILE_SCHEMA`, as they are listed.

    Raises:
        InputNotFound: a location names nothing, or nothing that holds images.
        InvalidDataset: a list of images can't be read.
    """
    for location in locations:
        found = False
        for batch in _in_batches(_files(location, options)):
            found = True
            yield batch
        if not found:
            raise InputNotFound(
                f"{location} holds no images: neither image files nor containers (Parquet, tar, IDX). A list of images "
                "is to be named itself, and ends in .txt, .csv, .tsv or .parquet."
            )


def pieces_of(files: Iterable[pa.RecordBatch], options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """Cut files into pieces, in their order.

    A container that can't be read is one piece of one image, which is then quarantined by its own URI.

    Args:
        files: by `FILE_SCHEMA`.
        options: how they are to be read.

    Returns:
        Pieces by `PIECE_SCHEMA`.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        for batch in files:
            kinds = batch.column("kind").to_pylist()
            containers = [row for row, kind in enumerate(kinds) if kind != "image"]
            cut = threads.map(lambda row, batch=batch: _cut(batch.slice(row, 1).to_pylist()[0], options), containers)
            position = 0
            for row, found in zip(containers, cut, strict=True):
                yield from _images(batch.slice(position, row - position))
                yield found
                position = row + 1
            yield from _images(batch.slice(position))


def check_inputs(locations: Iterable[str], options: ReadOptions) -> None:
    """Make sure that every location names something to classify, before anything is started.

    Raises:
        InputNotFound: one does not.
        InvalidDataset, RequestError: the first container of one can't be read.
    """
    for location in locations:
        first = next(list_files([location], options)).slice(0, 1).to_pylist()[0]
        if first["kind"] != "image":
            try:
                next(_container_pieces(first["uri"], first["kind"], options), None)
            except InputUnreadable as reason:
                raise RequestError(f"{first['uri']} can't be read: {reason}.") from None


def _files(location: str, options: ReadOptions) -> Iterator[tuple[str, str, str, int, int | None]]:
    for file in list_input_files(location):
        if _is_list(file, location):
            yield from _listed(file, options)
        elif (kind := _kind(file.uri)) is not None:
            yield file.uri, file.fingerprint, kind, file.size, None


def _kind(uri: str) -> str | None:
    return "image" if is_image_name(uri) else container_kind(uri)


def _is_list(file: InputFile, location: str) -> bool:
    if is_list_name(location):
        return is_list_name(file.uri)
    if not location.lower().endswith(".parquet") or not file.uri.endswith(location.rpartition("/")[2]):
        return False
    filesystem, path = filesystem_of(file.uri)
    try:
        return is_uri_list(pq.read_schema(path, filesystem=filesystem))
    except (pa.ArrowException, OSError, UnicodeDecodeError):  # told by who reads it
        return False


def _listed(file: InputFile, options: ReadOptions) -> Iterator[tuple[str, str, str, int, int | None]]:
    filesystem, path = filesystem_of(file.uri)
    label_column = options.label_column if file.uri.lower().endswith((".csv", ".tsv", ".parquet")) else None
    with filesystem.open_input_file(path) as opened, ThreadPoolExecutor(_THREADS) as threads:
        for entries in read_list(opened, path.rpartition("/")[2], file.uri, label_column=label_column):
            uris = [_uri(location, file.uri) for location in entries.locations]
            for uri, label, found in zip(uris, entries.labels, threads.map(_stat, uris), strict=True):
                kind = (_kind(uri) or "image") if found else "image"
                yield uri, found.fingerprint if found else NOT_THERE, kind, found.size if found else 0, label


def _uri(location: str, list_uri: str) -> str:
    resolved = resolve(location, list_uri)
    return f"file://{resolved}" if resolved.startswith("/") else resolved


def _stat(uri: str) -> InputFile | None:
    try:
        return stat_input(uri)
    except InputUnreadable:  # one line of a list is no reason to refuse the others; it is told when it is to be read
        return None


def _in_batches(files: Iterator[tuple[str, str, str, int, int | None]]) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(files, _ROWS)):
        columns = zip(*rows, strict=True)
        yield pa.record_batch(
            [pa.array(column, field.type) for column, field in zip(columns, FILE_SCHEMA, strict=True)],
            schema=FILE_SCHEMA,
        )


def _images(files: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if len(files):
        zeros, ones = pa.repeat(pa.scalar(0, pa.int64()), len(files)), pa.repeat(pa.scalar(1, pa.int64()), len(files))
        uri, fingerprint, kind, size, label = files.columns
        yield pa.record_batch([uri, fingerprint, kind, zeros, ones, zeros, size, label], schema=PIECE_SCHEMA)


def _cut(file: dict[str, Any], options: ReadOptions) -> pa.RecordBatch:
    kind = file["kind"]
    try:
        found = list(_container_pieces(file["uri"], kind, options))
    except (InputUnreadable, InvalidDataset):
        kind, found = "unreadable", [ContainerPiece(0, 1, 0, 0)]
    common = {"uri": file["uri"], "fingerprint": file["fingerprint"], "kind": kind, "label": None}
    return pa.RecordBatch.from_pylist([common | piece.__dict__ for piece in found], schema=PIECE_SCHEMA)


def _container_pieces(uri: str, kind: Any, options: ReadOptions) -> Iterator[ContainerPiece]:
    with open_container(uri, kind) as (file, labels):
        yield from pieces(
            kind,
            file,
            uri,
            target_rows=_PIECE_ROWS,
            target_bytes=_PIECE_BYTES,
            image_column=options.image_column,
            label_column=options.label_column,
            labels=labels,
        )


@contextmanager
def open_container(uri: str, kind: str, *, to_read: bool = False) -> Iterator[tuple[Any, Any | None]]:
    """Open a container, and the file with its labels where it has one beside it.

    Args:
        uri: its URI.
        kind: its kind.
        to_read: more than its footer; a small one on S3 is then fetched in one request instead of several.

    Raises:
        InputUnreadable: it is gone, or may not be read.
        RequestError: the store does not answer.
    """
    with ExitStack() as opened:
        labels = _labels_beside(uri) if kind == "idx" else None
        file = opened.enter_context(open_input(uri, fetch=_FETCHED_WHOLE if to_read else 0))
        yield file, opened.enter_context(open_input(labels)) if labels else None


def _labels_beside(uri: str) -> str | None:
    folder, _, name = uri.rpartition("/")
    labels = label_file_name(name)
    if labels is None:
        return None
    # Either of the two files may be gzipped.
    other = labels.removesuffix(".gz") if labels.endswith(".gz") else f"{labels}.gz"
    found = (f"{folder}/{candidate}" for candidate in (labels, other))
    return next((candidate for candidate in found if stat_input(candidate)), None)
