"""Read a shard's images: loose files many at a time, containers as streams. Report unreadable images with a reason."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats import container_kind, pieces, read
from fmnist_model.formats.interface import ContainerPiece, row_fragments
from infra.storage.input_files import CHANGED, VANISHED, InputUnreadable, read_input, stat_input
from infra.storage.tables.planning.plan import Piece
from infra.storage.tables.planning.staged_inputs import WITH_LABELS
from tasks.classification.container_paths import read_paths
from tasks.classification.containers import open_container, planned_fingerprint
from tasks.classification.listed_file import UNUSABLE
from tasks.classification.options import ReadOptions
from tasks.classification.reading_errors import first_cause, reason_of

if TYPE_CHECKING:
    from fmnist_model.formats import ContainerKind

BATCH_IMAGES = 4096
"""Maximum images in a batch, which is read, decoded and classified as a whole."""
_BATCH_BYTES = 64 * 2**20
"""Maximum bytes of encoded files in a batch."""
_MAX_FILE_BYTES = 256 * 2**20
"""Maximum size of an image file. The decoder's limit is 64 megapixels, and no such picture is larger."""
_READS_IN_FLIGHT = 16
_LOCAL_FILES_PER_READ = 32
"""Local files that a thread reads in one call: handing work to a thread costs as much as reading a file."""


@dataclass(frozen=True)
class ReadImages:
    """A batch of images as they were read, before decoding."""

    images: pa.StringArray
    """URIs, `[n]`."""
    encoded: pa.Array
    """Input for `decode_images`, `[n]`, null for an image that could not be read."""
    labels: pa.Int16Array
    """True classes, `[n]`, null if unknown."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Reason by row, for each image that could not be read."""


def read_shard(inputs: pa.Table, options: ReadOptions) -> Iterator[ReadImages]:
    """Read a shard's images in plan order, exactly as many as were planned.

    Args:
        inputs: rows of `PLAN_SCHEMA`.
        options: the options with which the rows were planned.

    Yields:
        Batches of at most `BATCH_IMAGES` images.

    Raises:
        InputsUnavailable: S3 or this machine fails.
    """
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as threads:
        for kind, run in _runs_of_one_kind(inputs):
            if kind == UNUSABLE:
                yield from _unusable_entries(run)
            elif kind == "image":
                for files in _in_batches(run):
                    yield _read_files(files, threads)
            else:
                for piece in Piece.from_arrow(run):
                    yield from _read_container(piece, options)


def container_batches(opened: tuple[Any, Any], piece: Piece, options: ReadOptions) -> Iterator[ReadImages]:
    """Read one piece of a container.

    Args:
        opened: the container and its labels, from `open_container`.
        piece: the part to read.
        options: options for reading the images.

    Raises:
        InvalidDataset: the container is damaged.
    """
    file, labels = opened
    for batch in read(
        cast("ContainerKind", piece.kind),
        file,
        piece.uri,
        ContainerPiece(piece.first_row, piece.rows, piece.offset, piece.size),
        batch_rows=BATCH_IMAGES,
        image_column=options.image_column,
        label_column=options.label_column,
        labels=labels,
    ):
        images = pc.binary_join_element_wise(pa.scalar(piece.uri), batch.fragments, "")
        found = ReadImages(images, batch.encoded, batch.labels, dict(batch.reasons))
        yield from _with_files(found, batch.paths, piece.uri) if batch.paths else [found]


def _with_files(batch: ReadImages, paths: Mapping[int, str], container: str) -> Iterator[ReadImages]:
    """Add the files that a container names by path, and cut the batch so that no part has too many bytes."""
    start = 0
    for contents in read_paths(paths, container):
        last = max(contents)
        end = len(batch.images) if last == max(paths) else last + 1
        values = batch.encoded.slice(start, end - start).to_pylist()
        reasons = {row - start: reason for row, reason in batch.reasons.items() if start <= row < end}
        for row, content in contents.items():
            if isinstance(content, str):
                reasons[row - start] = content
            else:
                values[row - start] = content
        encoded = pa.array(values, pa.binary())
        yield ReadImages(batch.images[start:end], encoded, batch.labels[start:end], reasons)
        start = end


def check_version(piece: Piece) -> None:
    """Check that a file hasn't changed since it was planned.

    Raises:
        InputUnreadable: the file is gone, or it changed.
    """
    found = stat_input(piece.uri)
    if found is None:
        raise InputUnreadable(VANISHED)
    # Plans from before Delta Lake lack the label file's part.
    current = planned_fingerprint(found, piece.kind) if WITH_LABELS in piece.fingerprint else found.fingerprint
    if current != piece.fingerprint:
        raise InputUnreadable(CHANGED)


def _runs_of_one_kind(inputs: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Group consecutive pieces of the same kind."""
    kinds = inputs.column("kind").combine_chunks()
    changes = 1 + np.flatnonzero(np.asarray(pc.not_equal(kinds[1:], kinds[:-1])))
    bounds = [0, *changes.tolist(), len(inputs)]
    for start, end in pairwise(bounds):
        yield kinds[start].as_py(), inputs.slice(start, end - start)


def _unusable_entries(entries: pa.Table) -> Iterator[ReadImages]:
    for batch in entries.to_batches(BATCH_IMAGES):
        reasons = dict(enumerate(batch.column("fingerprint").to_pylist()))
        nothing = pa.nulls(len(batch), pa.binary())
        yield ReadImages(batch.column("uri"), nothing, batch.column("label"), reasons)


def _in_batches(files: pa.Table) -> Iterator[pa.Table]:
    """Cut loose files into batches that fit into memory."""
    sizes = np.minimum(files.column("size").to_numpy(), _MAX_FILE_BYTES)
    start = 0
    while start < len(files):
        total = np.cumsum(sizes[start : start + BATCH_IMAGES])
        count = max(1, int(np.searchsorted(total, _BATCH_BYTES, side="right")))
        yield files.slice(start, count)
        start += count


def _read_files(files: pa.Table, threads: ThreadPoolExecutor) -> ReadImages:
    uris, fingerprints = files.column("uri").to_pylist(), files.column("fingerprint").to_pylist()
    per_read = 1 if uris[0].startswith("s3://") else _LOCAL_FILES_PER_READ
    chunks = [slice(first, first + per_read) for first in range(0, len(uris), per_read)]
    contents: list[bytes | None] = []
    reasons: dict[int, str] = {}
    for chunk in threads.map(lambda chosen: _read_chunk(uris[chosen], fingerprints[chosen]), chunks):
        for content in chunk:
            if isinstance(content, str):
                reasons[len(contents)] = content
            contents.append(content if isinstance(content, bytes) else None)
    labels = files.column("label").combine_chunks()
    return ReadImages(files.column("uri").combine_chunks(), pa.array(contents, pa.binary()), labels, reasons)


def _read_chunk(uris: list[str], fingerprints: list[str]) -> list[bytes | str]:
    """Return the bytes of each file, or the reason why it can't be read."""
    found: list[bytes | str] = []
    for uri, fingerprint in zip(uris, fingerprints, strict=True):
        try:
            found.append(read_input(uri, fingerprint, _MAX_FILE_BYTES))
        except Exception as error:  # noqa: BLE001 (one file must not stop the others)
            found.append(reason_of(error, uri))
    return found


def _read_container(piece: Piece, options: ReadOptions) -> Iterator[ReadImages]:
    """Read a piece of a container, and give a reason for each image that can't be read."""
    done = 0
    files: tuple[Any, ...] = ()
    try:
        if piece.kind == "unreadable":
            raise InputUnreadable(_why_unreadable(piece.uri, options))
        check_version(piece)
        with open_container(piece.uri, piece.kind, download=True) as files:
            for batch in container_batches(files, piece, options):
                if len(batch.images) > piece.rows - done:
                    raise InputUnreadable(CHANGED)
                yield batch
                done += len(batch.images)
    except Exception as error:  # noqa: BLE001 (one file must not stop the others)
        yield from _unreadable_rest(piece, done, reason_of(first_cause(error, files), piece.uri))


def _unreadable_rest(piece: Piece, done: int, reason: str) -> Iterator[ReadImages]:
    """Give the same reason for all images of a piece after the first `done`."""
    if piece.kind == "unreadable":  # how many images it holds is unknown, so it counts as one
        yield _unreadable(pa.array([piece.uri], pa.string()), reason)
        return
    for first in range(done, piece.rows, BATCH_IMAGES):
        fragments = row_fragments(piece.first_row + first, min(BATCH_IMAGES, piece.rows - first))
        yield _unreadable(pc.binary_join_element_wise(pa.scalar(piece.uri), fragments, ""), reason)


def _unreadable(images: pa.StringArray, reason: str) -> ReadImages:
    count = len(images)
    reasons = dict.fromkeys(range(count), reason)
    return ReadImages(images, pa.nulls(count, pa.binary()), pa.nulls(count, pa.int16()), reasons)


def _why_unreadable(uri: str, options: ReadOptions) -> str:
    """Find out why a container can't be read by trying to cut it into pieces again."""
    kind = container_kind(uri)
    files: tuple[Any, ...] = ()
    try:
        if kind is not None:
            with open_container(uri, kind) as files:
                columns = {"image_column": options.image_column, "label_column": options.label_column}
                for _ in pieces(kind, files[0], uri, target_rows=1, target_bytes=2**30, labels=files[1], **columns):
                    pass
    except Exception as error:  # noqa: BLE001 (one file must not stop the others)
        cause = first_cause(error, files)
        return f"unreadable: {cause}" if isinstance(cause, InvalidDataset) else reason_of(cause, uri)
    return "changed: the file could not be read when it was planned, and the next run classifies it"
