"""Read and decode a shard that killed its workers, and find the images that do it.

A child process reads and decodes the images, and announces each one before it decodes it. If the child dies, the
announced image is decoded again by a child of its own. If that one dies too, the image is quarantined as `crashed`. The
next child continues with the rest.

If a child dies while it reads from a container, the rest of the container is halved until single images are left. A tar
can't be read from the middle, so the rest of its piece is quarantined if a second child dies.

This finds deaths. It has no time limit, so it doesn't find an image whose decoding never ends.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import pyarrow as pa

from fmnist_model.classes import IMAGE_SIZE
from fmnist_model.formats import ContainerKind, pieces
from infra.child_process import ChildDied, iterate_in_child
from infra.storage.tables.planning.plan import Piece
from tasks.classification.containers import open_container
from tasks.classification.decode import decode_row
from tasks.classification.options import ReadOptions
from tasks.classification.positions import ShardPositions
from tasks.classification.read import BATCH_IMAGES, ReadImages, read_shard
from tasks.classification.reasons import CRASHED

MEMORY_BYTES = 3 * 2**29
"""Memory that a child process may allocate for reading and decoding: 1.5 GiB."""
_MAX_READING_DEATHS = 32
"""Deaths while reading a row group of a Parquet file, or a piece of another container, after which it isn't halved.

To find one image among 20,000 takes about 16. A damaged page may kill every reader of the rows behind it.
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Image:
    """An image that was read and decoded, or the reason why it was not."""

    uri: str
    label: int | None
    pixels: bytes | None
    reason: str | None = None


@dataclass(frozen=True)
class _Announcement:
    """The image that the child decodes next."""

    uri: str
    label: int | None


def read_suspect_shard(inputs: pa.Table, options: ReadOptions) -> Iterator[ReadImages]:
    """Read and decode a shard's images in plan order, exactly as many as were planned, whatever kills their reader.

    Args:
        inputs: rows of `PLAN_SCHEMA`.
        options: the options with which the rows were planned.

    Yields:
        Batches of at most `BATCH_IMAGES` images. `encoded` holds the decoded pixels, before `options.invert`.

    Raises:
        InputsUnavailable: S3 or this machine fails.
        JobError: a child process can't start.
    """
    batch: list[_Image] = []
    shard = _SuspectShard(inputs, options)
    for image in shard.images(0, shard.positions.count):
        batch.append(image)
        if len(batch) == BATCH_IMAGES:
            yield _to_arrow(batch)
            batch = []
    if batch:
        yield _to_arrow(batch)


def _to_arrow(batch: list[_Image]) -> ReadImages:
    return ReadImages(
        images=pa.array([image.uri for image in batch], pa.string()),
        encoded=pa.array([image.pixels for image in batch], pa.binary(IMAGE_SIZE**2)),
        labels=pa.array([image.label for image in batch], pa.int16()),
        reasons={row: image.reason for row, image in enumerate(batch) if image.reason is not None},
    )


class _SuspectShard:
    def __init__(self, inputs: pa.Table, options: ReadOptions) -> None:
        self.positions = ShardPositions(inputs)
        self._options = options
        self._reading_deaths: Counter[tuple[str, int]] = Counter()
        """Children that died while they read from a row group or another piece, by `_group_of`."""

    def images(self, first: int, end: int, *, is_retry: bool = False) -> Iterator[_Image]:
        """Yield the images from position `first` to `end`.

        Args:
            first: position of the first image.
            end: position after the last image.
            is_retry: whether a child has died at the first image already.
        """
        while first < end:
            start, decoding = first, None
            try:
                for message in self._in_child(first, end):
                    if isinstance(message, _Announcement):
                        decoding = message
                    else:
                        decoding, first = None, first + 1
                        yield message
                return
            except ChildDied as death:
                _log.info("Image %s of the shard: its process %s.", f"{first + 1:,}", death)
                if is_retry and first == start and (decoding is None or end == first + 1):
                    yield from self._crashed(first, end, decoding, death)
                    return
            stop = first + 1 if decoding else self._end_of_reading(first, end)
            yield from self._isolate(first, stop)
            first, is_retry = stop, False

    def _isolate(self, first: int, stop: int) -> Iterator[_Image]:
        """Yield images, at one of which a child died, by trying fewer of them together."""
        if stop == first + 1 or self._stays_whole(first):
            yield from self.images(first, stop, is_retry=True)
            return
        middle = (first + stop) // 2
        yield from self.images(first, middle)
        yield from self.images(middle, stop)

    def _end_of_reading(self, first: int, end: int) -> int:
        """Count a child that died while it read, and return the end of the images that it may have been reading."""
        piece = self.positions.piece_at(first)
        if piece.kind == "image":
            return min(end, first + BATCH_IMAGES)
        if piece.kind == "parquet" and _group_of(piece) not in self._reading_deaths:
            self._split_at_row_groups(first, piece)
        self._reading_deaths[_group_of(self.positions.piece_at(first))] += 1
        return min(end, self.positions.end_of(first, _group_of if self._stays_whole(first) else _file_of))

    def _split_at_row_groups(self, position: int, piece: Piece) -> None:
        """Split a piece of a Parquet file, so that row groups can be read without those before them."""
        try:
            smaller = list(iterate_in_child(row_group_pieces, piece, self._options, memory_bytes=MEMORY_BYTES))
        except Exception:  # noqa: BLE001 (the file may be damaged, which reading it reports)
            return
        if sum(part.rows for part in smaller) == piece.rows:
            self.positions.split(position, smaller)

    def _stays_whole(self, position: int) -> bool:
        """Whether images are given up together."""
        deaths = self._reading_deaths[_group_of(self.positions.piece_at(position))]
        return deaths > _MAX_READING_DEATHS or not self.positions.can_be_cut(position)

    def _in_child(self, first: int, end: int) -> Iterator[_Image | _Announcement]:
        rows, skipped = self.positions.cut(first, end)
        return iterate_in_child(read_and_decode, rows, self._options, skipped, end - first, memory_bytes=MEMORY_BYTES)

    def _crashed(self, first: int, end: int, decoding: _Announcement | None, death: ChildDied) -> Iterator[_Image]:
        """Give up images of one file, or the one that was announced."""
        reason = f"{CRASHED}: the process that {'decoded' if decoding else 'read'} it {death} twice"
        label = decoding.label if decoding else self.positions.piece_at(first).label
        names = [decoding.uri] if decoding else self.positions.names(first, end)
        _log.warning("%s: %s%s.", names[0], reason, f", and {len(names) - 1:,} more images" if len(names) > 1 else "")
        for name in names:
            yield _Image(name, label, None, reason)


def _group_of(piece: Piece) -> tuple[str, int]:
    """Identify the row group of a piece of a Parquet file, or a piece of another container."""
    return piece.uri, piece.offset


def _file_of(piece: Piece) -> str:
    return piece.uri


def row_group_pieces(piece: Piece, options: ReadOptions) -> Iterator[Piece]:
    """Cut a piece of a Parquet file into pieces of at most one row group. Runs in the child."""
    with open_container(piece.uri, piece.kind) as (file, labels):
        columns = {"image_column": options.image_column, "label_column": options.label_column}
        kind = cast("ContainerKind", piece.kind)
        for found in pieces(kind, file, piece.uri, target_rows=1, target_bytes=1, labels=labels, **columns):
            first = max(found.first_row, piece.first_row)
            end = min(found.first_row + found.rows, piece.first_row + piece.rows)
            if first < end:
                yield replace(piece, first_row=first, rows=end - first, offset=found.offset, size=found.size)


def read_and_decode(rows: pa.Table, options: ReadOptions, skip: int, count: int) -> Iterator[_Image | _Announcement]:
    """Read and decode images in plan order, and announce each one before it is decoded. Runs in the child.

    Args:
        rows: rows of `PIECE_SCHEMA`.
        options: the options with which the rows were planned.
        skip: number of images to read and drop at the start.
        count: number of images to decode after that.
    """
    position = -skip
    for batch in read_shard(rows, options):
        labels = batch.labels.to_pylist()
        for row, uri in enumerate(batch.images.to_pylist()):
            if position == count:
                return
            if position >= 0:
                yield from _decode(batch, row, uri, labels[row])
            position += 1


def _decode(batch: ReadImages, row: int, uri: str, label: int | None) -> Iterator[_Image | _Announcement]:
    if row in batch.reasons:
        yield _Image(uri, label, None, batch.reasons[row])
        return
    yield _Announcement(uri, label)
    pixels = decode_row(batch.encoded, row)
    if isinstance(pixels, str):
        yield _Image(uri, label, None, _reason(pixels))
    else:
        yield _Image(uri, label, pixels.tobytes())


def _reason(reason: str) -> str:
    if re.match(r"damaged: \w*MemoryError", reason):
        return f"too large: decoding it takes more than {MEMORY_BYTES / 2**30:g} GiB of memory"
    return reason
