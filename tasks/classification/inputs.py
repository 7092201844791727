"""List the inputs of a classification as files, and cut the files into pieces that are read together."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa

from infra.errors import RequestError
from infra.storage.input_files import InputNotFound, InputUnreadable, list_input_files
from infra.storage.tables.planning.plan import PIECE_SCHEMA
from infra.storage.tables.planning.staged_inputs import FILE_SCHEMA
from infra.storage.uris import possible_uris
from tasks.classification.containers import container_pieces, cut_container
from tasks.classification.listed_file import UNUSABLE, ListedFile, file_kind
from tasks.classification.lists import check_list, files_in_list, is_list
from tasks.classification.options import ReadOptions

_BATCH_FILES = 16_384
"""Files in a record batch."""
_THREADS = 16
"""Files inspected at the same time. For remote files, most of the time is spent waiting."""


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
                "images in a list, give the path of the list itself (.txt, .csv, .tsv, .jsonl or .parquet)."
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
            containers = [row for row, kind in enumerate(kinds) if kind not in ("image", UNUSABLE)]
            cut = threads.map(lambda row, batch=batch: cut_container(_listed_file(batch, row), options), containers)
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
        RequestError: the first container of a location can't be opened, or nothing that a list names exists.
    """
    for location in locations:
        if _checked_list(location, options):
            continue
        first = _listed_file(next(list_files([location], options)), 0)
        if first.kind != "image":
            try:
                next(container_pieces(first, options), None)
            except InputUnreadable as reason:
                raise RequestError(f"{first.uri} can't be read: {reason}.") from None


def _checked_list(location: str, options: ReadOptions) -> bool:
    """Check the first list of a location. Return False if its first file isn't a list."""
    file = next(list_input_files(location), None)
    if file is None or not is_list(file, location, _named(location), options):
        return False
    check_list(file, options)
    return True


def _named(location: str) -> list[str]:
    return possible_uris(location) if location.lower().endswith(".parquet") else []


def _listed_file(files: pa.RecordBatch, row: int) -> ListedFile:
    return ListedFile(**files.slice(row, 1).to_pylist()[0])


def _to_batches(files: Iterator[ListedFile]) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(files, _BATCH_FILES)):
        columns = zip(*rows, strict=True)
        yield pa.record_batch(
            [pa.array(column, field.type) for column, field in zip(columns, FILE_SCHEMA, strict=True)],
            schema=FILE_SCHEMA,
        )


def _files(location: str, options: ReadOptions) -> Iterator[ListedFile]:
    named = _named(location)
    for file in list_input_files(location):
        if is_list(file, location, named, options):
            yield from files_in_list(file, options)
        elif (kind := file_kind(file.uri)) is not None:
            yield ListedFile(file.uri, file.fingerprint, kind, file.size)


def _image_pieces(files: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if len(files):
        zeros, ones = pa.repeat(pa.scalar(0, pa.int64()), len(files)), pa.repeat(pa.scalar(1, pa.int64()), len(files))
        uri, fingerprint, kind, size, label = files.columns
        yield pa.record_batch([uri, fingerprint, kind, zeros, ones, zeros, size, label], schema=PIECE_SCHEMA)
