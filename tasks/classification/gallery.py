"""Find the images of a batch with the lowest confidence, and read their pixels again for the report."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fmnist_model.errors import one_line
from fmnist_model.formats import pieces
from fmnist_model.formats.interface import ContainerPiece
from fmnist_model.reports.batch_page import ShownImage
from infra.storage.object_store import ObjectStore
from infra.storage.tables.planning.plan import BatchPlan, Piece, ShardInputs
from infra.storage.tables.records import LeastConfident, ShardRecord
from tasks.classification.containers import open_container
from tasks.classification.decode import decode_batch
from tasks.classification.options import ReadOptions
from tasks.classification.read import ReadImages, check_version, container_batches, read_shard
from tasks.classification.reasons import CRASHED
from tasks.classification.tally import least_confident

_MAX_BYTES = 2**30
"""Maximum bytes to read for a gallery. An image in a container can lie behind a lot of other data."""
_MAX_GAP_BYTES = 8 * 2**20
"""Largest gap between two row groups that is read along instead of sending another request."""
_log = logging.getLogger(__name__)
_FRAGMENT = re.compile(r"#(?:row|member)=")


def show_least_confident(store: ObjectStore, plan: BatchPlan, records: Iterable[ShardRecord]) -> list[ShownImage]:
    """Return the images of a batch with the lowest confidence, the lowest first.

    An image that is gone, has changed or can't be read has no pixels and gives the reason instead. Nothing raises.

    Args:
        store: the store with the batch.
        plan: plan of the batch.
        records: the records of its shards.
    """
    records = list(records)
    least, shards = _least(records)
    crashing = {record.shard for record in records if any(reason.kind == CRASHED for reason in record.reasons)}
    found = {image: _Pixels(missing="its shard has images that kill their reader") for image in shards}
    found |= _PixelReader(store, plan).read({image: shard for image, shard in shards.items() if shard not in crashing})
    return [
        ShownImage(
            uri=entry.image,
            probabilities=entry.probabilities,
            label=entry.label,
            pixels=found[entry.image].pixels,
            missing=found[entry.image].missing,
        )
        for entry in least
    ]


def _least(records: Iterable[ShardRecord]) -> tuple[list[LeastConfident], dict[str, int]]:
    """Return the predictions with the lowest confidence, and the shard of each image."""
    least: list[LeastConfident] = []
    shards: dict[str, int] = {}
    for record in records:
        shards |= {entry.image: record.shard for entry in record.least_confident}
        least = least_confident([*least, *record.least_confident])
    return least, {entry.image: shards[entry.image] for entry in least}


@dataclass(frozen=True)
class _Pixels:
    """Result of reading an image again."""

    pixels: NDArray[np.uint8] | None = None
    """`[28, 28]`, 0 black to 255 white."""
    missing: str = "it can't be found in the batch's plan"
    """Reason for missing pixels."""


@dataclass(frozen=True)
class _WantedImages:
    """Images to read from one file."""

    piece: Piece
    """A piece of the file."""
    images: list[str]
    """URIs of the images."""


class _PixelReader:
    """Read images of a batch again, with the batch's own plan and options."""

    def __init__(self, store: ObjectStore, plan: BatchPlan) -> None:
        self._store, self._plan = store, plan
        self._options = ReadOptions.from_record(plan.options)
        self._bytes_left = _MAX_BYTES

    def read(self, images: dict[str, int]) -> dict[str, _Pixels]:
        """Return the pixels of images by URI, or the reason why they are missing.

        Args:
            images: shard of each image, by URI.
        """
        found = {image: _Pixels() for image in images}
        try:
            for wanted in self._wanted(images):
                self._read_wanted(wanted, found)
        except Exception as error:  # noqa: BLE001 (the batch is committed, and its report must not fail the run)
            _log.warning("The report lacks pictures, because the batch's plan can't be read: %s", one_line(error))
        return found

    def _read_wanted(self, wanted: _WantedImages, found: dict[str, _Pixels]) -> None:
        piece = wanted.piece
        try:
            if piece.kind == "image":
                self._read(piece, {piece.uri}, read_shard(_table(piece), self._options), found)
            else:
                self._read_container(wanted, found)
        except Exception as error:  # noqa: BLE001 (one image must not stop the others)
            missing = (image for image in wanted.images if found[image].pixels is None)
            found |= dict.fromkeys(missing, _Pixels(missing=str(error) or type(error).__name__))

    def _wanted(self, images_to_shards: dict[str, int]) -> Iterator[_WantedImages]:
        """Find the pieces of the plan that may hold the images, one piece for each container with numbered images."""
        if not images_to_shards:
            return
        inputs = ShardInputs(self._store, self._plan)
        by_shard = defaultdict(list)
        for image, shard in images_to_shards.items():
            by_shard[shard].append(image)
        numbered: dict[str, _WantedImages] = {}
        for shard, images in by_shard.items():
            files = pa.array({file for image in images for file in _possible_files(image)}, pa.string())
            shard_inputs = inputs.of(shard)
            for piece in Piece.from_arrow(shard_inputs.filter(pc.is_in(shard_inputs.column("uri"), files))):
                held = [image for image in images if _may_hold(piece, image)]
                if held and all(_row_of(piece, image) is not None for image in held):
                    numbered.setdefault(piece.uri, _WantedImages(piece, [])).images.extend(held)
                elif held:
                    yield _WantedImages(piece, held)
        yield from numbered.values()

    def _read_container(self, wanted: _WantedImages, found: dict[str, _Pixels]) -> None:
        """Read images of a container. Open it only once, because opening a file on S3 takes two requests."""
        piece = wanted.piece
        check_version(piece)
        with open_container(piece.uri, piece.kind, download=True) as opened:
            for narrow, images in _narrow(wanted, opened[0], self._options, found):
                if images:
                    self._read(narrow, images, container_batches(opened, narrow, self._options), found)

    def _read(self, piece: Piece, wanted: set[str], batches: Iterator[ReadImages], found: dict[str, _Pixels]) -> None:
        """Read a piece until all wanted images are found."""
        if piece.size > self._bytes_left:
            found |= dict.fromkeys(wanted, _Pixels(missing=f"reading it takes {piece.size:,} bytes, which is too much"))
            return
        self._bytes_left -= piece.size
        missing, reason = set(wanted), "its file does not contain it any more"
        for batch in batches:
            for image, pixels in _decode_wanted(batch, missing, self._options):
                found[image] = pixels
                missing.discard(image)
            if not missing:
                return
            reason = next(iter(batch.reasons.values()), reason)
        found |= dict.fromkeys(missing, _Pixels(missing=reason))


def _table(piece: Piece) -> pa.Table:
    return pa.Table.from_batches([Piece.to_arrow([piece])])


def _possible_files(image: str) -> Iterator[str]:
    """Return the files that may hold an image. A file's own name can look like a fragment for a container."""
    yield image
    yield from (image[: fragment.start()] for fragment in _FRAGMENT.finditer(image))


def _may_hold(piece: Piece, image: str) -> bool:
    if piece.kind == "image":
        return image == piece.uri
    row = _row_of(piece, image)
    if row is None:
        return piece.kind == "tar" and image.startswith(f"{piece.uri}#member=")
    return piece.first_row <= row < piece.first_row + piece.rows


def _row_of(piece: Piece, image: str) -> int | None:
    """Return the number of an image in its container, or None if its URI has no number."""
    found = re.fullmatch(r"#row=(\d+)", image.removeprefix(piece.uri))
    return int(found[1]) if found else None


def _narrow(
    wanted: _WantedImages, file: Any, options: ReadOptions, found: dict[str, _Pixels]
) -> Iterator[tuple[Piece, set[str]]]:
    """Cut a piece down to the rows that hold the wanted images. A tar has to be read as a whole."""
    piece = wanted.piece
    numbers = {row: image for image in wanted.images if (row := _row_of(piece, image)) is not None}
    if not numbers:
        yield piece, {image for image in wanted.images if found[image].pixels is None}
        return
    rows = sorted(numbers)
    if piece.kind == "idx":
        yield replace(piece, first_row=rows[0], rows=rows[-1] - rows[0] + 1), set(wanted.images)
        return
    for groups in _join_near(_row_groups(piece, file, options), rows):
        held = [row for row in rows if groups[0].first_row <= row < groups[-1].first_row + groups[-1].rows]
        narrow = replace(
            piece,
            first_row=held[0],
            rows=held[-1] - held[0] + 1,
            offset=groups[0].offset,
            size=sum(group.size for group in groups),
        )
        yield narrow, {numbers[row] for row in held}


def _join_near(groups: list[ContainerPiece], rows: list[int]) -> list[list[ContainerPiece]]:
    """Select the row groups with wanted rows, and group those to read together.

    Row groups without wanted rows are included if they fill a small gap, because each read costs requests.
    """
    joined: list[list[ContainerPiece]] = []
    gap: list[ContainerPiece] = []
    for group in groups:
        if not any(group.first_row <= row < group.first_row + group.rows for row in rows):
            gap.append(group)
            continue
        if joined and sum(other.size for other in gap) <= _MAX_GAP_BYTES:
            joined[-1] += [*gap, group]
        else:
            joined.append([group])
        gap = []
    return joined


def _row_groups(piece: Piece, file: Any, options: ReadOptions) -> list[ContainerPiece]:
    """Cut a Parquet file into the smallest possible pieces: one row group or less."""
    columns = {"image_column": options.image_column, "label_column": options.label_column}
    return list(pieces("parquet", file, piece.uri, target_rows=1, target_bytes=1, **columns))


def _decode_wanted(batch: ReadImages, wanted: set[str], options: ReadOptions) -> Iterator[tuple[str, _Pixels]]:
    rows = [row for row, image in enumerate(batch.images.to_pylist()) if image in wanted]
    if not rows:
        return
    decoded = decode_batch(batch.encoded.take(pa.array(rows, pa.int64())), invert=options.invert)
    for position, reason in decoded.rejected:
        yield batch.images[rows[position]].as_py(), _Pixels(missing=batch.reasons.get(rows[position], reason))
    for slot, position in enumerate(decoded.rows.tolist()):
        yield batch.images[rows[position]].as_py(), _Pixels(decoded.pixels[slot])
