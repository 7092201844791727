"""List the inputs of a classification as files, and cut the files into pieces that are read together."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

import pyarrow as pa

from infra.errors import RequestError
from infra.storage.input_files import InputNotFound, InputUnreadable, list_input_files, stat_input
from infra.storage.tables.planning.plan import PIECE_SCHEMA
from infra.storage.tables.planning.staged_inputs import FILE_SCHEMA
from infra.storage.uris import possible_uris
from tasks.classification.containers import container_pieces, cut_container, planned_fingerprint
from tasks.classification.listed_file import (
    LABEL_FILE,
    UNUSABLE,
    ListedFile,
    file_kind,
    images_of_labels,
    named_kind,
    passed_over_kind,
    path_or_uri,
)
from tasks.classification.lists import check_list, files_in_list, is_list
from tasks.classification.options import ReadOptions
from tasks.classification.passed_over import PassedOver

_BATCH_FILES = 16_384
"""Files in a record batch."""
_THREADS = 16
"""Files inspected at the same time. For remote files, most of the time is spent waiting."""


def list_files(
    locations: Iterable[str], options: ReadOptions, passed_over: PassedOver | None = None
) -> Iterator[pa.RecordBatch]:
    """List the files that can hold images, in the order in which the store returns them.

    Args:
        locations: paths or URIs of files, folders, globs or lists of images.
        options: options for reading the images.
        passed_over: collects what folders and globs hold apart from images.

    Yields:
        Batches of rows of `FILE_SCHEMA`.

    Raises:
        InputNotFound: a location doesn't exist, or holds nothing that can be an image.
        InvalidDataset: a list of images can't be read.
    """
    for location in locations:
        found, passed_over_here = False, PassedOver()
        for batch in _to_batches(_files(location, options, passed_over_here)):
            found = True
            yield batch
        if not found:
            raise no_images(location, passed_over_here)
        if passed_over is not None:
            passed_over.merge(passed_over_here)


def no_images(location: str, passed_over: PassedOver) -> InputNotFound:
    """Return the error about a location that holds no images. It names what the location holds instead."""
    held = passed_over.text()
    return InputNotFound(
        f"{location} holds no images: neither image files nor containers (Parquet, tar, IDX). "
        f"{held}{'. ' if held else ''}To classify the images in a list, give the path of the list itself (.txt, .csv, "
        ".tsv, .jsonl or .parquet)."
    )


def pieces_of(
    files: Iterable[pa.RecordBatch], options: ReadOptions, passed_over: PassedOver | None = None
) -> Iterator[pa.RecordBatch]:
    """Cut files into pieces, in the order of the files.

    An unreadable container becomes one piece with one image. That image is later quarantined under the container's URI.

    Args:
        files: rows of `FILE_SCHEMA`.
        options: options for reading the images.
        passed_over: collects containers without images.

    Yields:
        Batches of rows of `PIECE_SCHEMA`.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    with ThreadPoolExecutor(_THREADS) as threads:
        for batch in files:
            kinds = batch.column("kind").to_pylist()
            containers = [row for row, kind in enumerate(kinds) if kind not in ("image", UNUSABLE)]
            listed = (_listed_file(batch, row) for row in containers)
            cut = threads.map(lambda file: cut_container(file, options, passed_over), listed)
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
        InvalidDataset: a location names a container that is damaged.
        RequestError: a location names a container that can't be opened, or a list of which nothing exists.
    """
    for location in locations:
        if _checked_list(location, options):
            continue
        first = _listed_file(next(list_files([location], options)), 0)
        if first.kind in ("image", UNUSABLE) or first.uri not in possible_uris(location):
            continue  # a folder may hold damaged containers, which end in quarantine
        try:
            next(container_pieces(first, options), None)
        except InputUnreadable as reason:
            raise RequestError(f"{first.uri} can't be read: {reason}.") from None


def _checked_list(location: str, options: ReadOptions) -> bool:
    """Check the first list of a location. Return False if its first file isn't a list."""
    file = next(list_input_files(location), None)
    if file is None or not is_list(file, location, possible_uris(location), options):
        return False
    check_list(file, options)
    return True


def _listed_file(files: pa.RecordBatch, row: int) -> ListedFile:
    return ListedFile(**files.slice(row, 1).to_pylist()[0])


def _to_batches(files: Iterator[ListedFile]) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(files, _BATCH_FILES)):
        columns = zip(*rows, strict=True)
        yield pa.record_batch(
            [pa.array(column, field.type) for column, field in zip(columns, FILE_SCHEMA, strict=True)],
            schema=FILE_SCHEMA,
        )


def _files(location: str, options: ReadOptions, passed_over: PassedOver) -> Iterator[ListedFile]:
    named = possible_uris(location)
    for file in list_input_files(location, passed_over.add):
        if is_list(file, location, named, options):
            yield from files_in_list(file, options)
        elif kind := (named_kind if file.uri in named else file_kind)(file.uri):
            yield ListedFile(file.uri, planned_fingerprint(file, kind), kind, file.size)
        elif not _holds_used_labels(file.uri):
            passed_over.add(passed_over_kind(file.uri), path_or_uri(file.uri))


def _holds_used_labels(uri: str) -> bool:
    """Return whether a file holds the labels of an IDX file next to it, which are read together with the images."""
    if passed_over_kind(uri) != LABEL_FILE:
        return False
    with suppress(InputUnreadable):
        return any(stat_input(images) for images in images_of_labels(uri))
    return False


def _image_pieces(files: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if len(files):
        zeros, ones = pa.repeat(pa.scalar(0, pa.int64()), len(files)), pa.repeat(pa.scalar(1, pa.int64()), len(files))
        uri, fingerprint, kind, size, label = files.columns
        yield pa.record_batch([uri, fingerprint, kind, zeros, ones, zeros, size, label], schema=PIECE_SCHEMA)
