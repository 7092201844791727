"""The images of a batch of which the network is least sure, with their pixels read once more."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fmnist_model.batch_report import ShownImage
from fmnist_model.containers import pieces
from fmnist_model.containers.interface import ContainerPiece
from fmnist_model.errors import InvalidDataset
from fmnist_model.images import decode_images
from infra.batch_plan import PIECE_SCHEMA, ShardInputs, find_plan
from infra.errors import RequestError
from infra.input_files import InputUnreadable
from infra.object_store import ObjectStore
from infra.prediction_table import BatchManifest, open_rows
from tasks.inputs import ReadOptions, open_container
from tasks.reading import ReadImages, read_shard

GALLERY_IMAGES = 20
_MOST_BYTES = 2**30
"""Read for a gallery, at most: an image in a container may lie behind much else."""
_UNREADABLE = (InputUnreadable, InvalidDataset, RequestError, OSError, pa.ArrowException)
_FRAGMENT = re.compile(r"#(?:row|member)=")


def least_confident(store: ObjectStore, manifest: BatchManifest, count: int = GALLERY_IMAGES) -> list[ShownImage]:
    """The images of a committed batch with the lowest confidence, the lowest first.

    An image that is gone, was changed since or can't be read has no pixels, and says why.
    """
    rows = _least_confident_rows(store, manifest, count)
    found = _Pixels(store, manifest).of(rows)
    return [
        ShownImage(
            uri=row["image"],
            probabilities=row["probabilities"],
            label=row["label"],
            pixels=found[row["image"]].pixels,
            missing=found[row["image"]].missing,
        )
        for row in rows
    ]


def _least_confident_rows(store: ObjectStore, manifest: BatchManifest, count: int) -> list[dict[str, Any]]:
    """Rows with `image`, `confidence`, `probabilities`, `label` and `shard`; memory does not grow with the batch."""
    from pyarrow import dataset

    rows = open_rows(store, [manifest])
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        # The limit first, from one narrow column: the wide ones are then read where row groups have any below it.
        [(limit,)] = connection.execute(
            "SELECT max(confidence) FROM (SELECT confidence FROM rows ORDER BY confidence LIMIT ?)", [count]
        ).fetchall()
    if limit is None:
        return []
    columns = ["image", "confidence", "probabilities", "label", "__filename"]
    within = dataset.field("confidence") <= pa.scalar(limit, pa.float32())
    least: list[pa.RecordBatch] = []
    # Ahead are read few, or what is held would be more than what is looked for by far.
    for batch in rows.scanner(columns=columns, filter=within, batch_readahead=2, fragment_readahead=1).to_batches():
        held = pa.Table.from_batches([*least, batch])
        held = held.sort_by([("confidence", "ascending"), ("image", "ascending")])
        least = held.slice(0, count).combine_chunks().to_batches()
    return [row | {"shard": _shard(row["__filename"])} for found in least for row in found.to_pylist()]


def _shard(part: str) -> int:
    found = re.search(r"part-(\d+)\.parquet$", part)
    return int(found[1]) if found else -1


@dataclass(frozen=True)
class _Seen:
    """What became of an image that was to be read once more."""

    pixels: NDArray[np.uint8] | None = None
    missing: str = "it is not in the batch's plan"


class _Pixels:
    """Reads images of a batch again, by its plan and with its options."""

    def __init__(self, store: ObjectStore, manifest: BatchManifest) -> None:
        self._store, self._manifest = store, manifest
        self._options = ReadOptions.model_validate(manifest.options)
        self._bytes_left = _MOST_BYTES

    def of(self, rows: list[dict[str, Any]]) -> dict[str, _Seen]:
        """The pixels of these rows' images, or why there are none, by URI."""
        found = {row["image"]: _Seen() for row in rows}
        for piece, images in self._pieces(rows):
            for narrow, wanted in _narrowed(piece, images, self._options, found):
                if not wanted:
                    continue
                if narrow["size"] > self._bytes_left:
                    reason = f"{narrow['size']:,} bytes would have to be read for it"
                    found |= dict.fromkeys(wanted, _Seen(missing=reason))
                    continue
                self._bytes_left -= narrow["size"]
                self._read(narrow, wanted, found)
        return found

    def _pieces(self, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """The pieces of the plan that may hold the images of rows."""
        plan = find_plan(self._store, self._manifest.table, self._manifest.batch)
        if plan is None or not rows:
            return
        inputs = ShardInputs(self._store, plan)
        by_shard = defaultdict(list)
        for row in rows:
            by_shard[row["shard"]].append(row["image"])
        for shard, images in by_shard.items():
            files = pa.array({file for image in images for file in _files(image)}, pa.string())
            shard_inputs = inputs.of(shard).select(PIECE_SCHEMA.names)
            for piece in shard_inputs.filter(pc.is_in(shard_inputs.column("uri"), files)).to_pylist():
                held = [image for image in images if _may_hold(piece, image)]
                if held:
                    yield piece, held

    def _read(self, piece: dict[str, Any], wanted: set[str], found: dict[str, _Seen]) -> None:
        """Read a piece until all that is wanted of it was found."""
        missing, reason = set(wanted), "it is not in its file any more"
        try:
            for batch in read_shard(pa.Table.from_pylist([piece], schema=PIECE_SCHEMA), self._options):
                for image, seen in _seen(batch, missing, self._options):
                    found[image] = seen
                    missing.discard(image)
                if not missing:
                    return
                # A container that can't be read does not say which images it had.
                reason = next(iter(batch.reasons.values()), reason)
        except _UNREADABLE as error:
            reason = str(error)
        found |= dict.fromkeys(missing, _Seen(missing=reason))


def _files(image: str) -> Iterator[str]:
    """The files that an image's URI may be in; a file's own name may look like a place in a container."""
    yield image
    yield from (image[: fragment.start()] for fragment in _FRAGMENT.finditer(image))


def _may_hold(piece: dict[str, Any], image: str) -> bool:
    uri = piece["uri"]
    if piece["kind"] == "image":
        return bool(image == uri)
    row = _row_of(piece, image)
    if row is None:
        return piece["kind"] == "tar" and image.startswith(f"{uri}#member=")
    return bool(piece["first_row"] <= row < piece["first_row"] + piece["rows"])


def _row_of(piece: dict[str, Any], image: str) -> int | None:
    """The number of an image in its container, where its URI tells it."""
    found = re.fullmatch(r"#row=(\d+)", image.removeprefix(piece["uri"]))
    return int(found[1]) if found else None


def _narrowed(
    piece: dict[str, Any], images: list[str], options: ReadOptions, found: dict[str, _Seen]
) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """Cut a piece down to what has to be read for some of its images; for those of a tar, that is all of it."""
    numbers = {row: image for image in images if (row := _row_of(piece, image)) is not None}
    if not numbers:
        yield piece, {image for image in images if found[image].pixels is None}
        return
    rows = sorted(numbers)
    if piece["kind"] == "idx":
        yield piece | {"first_row": rows[0], "rows": rows[-1] - rows[0] + 1}, set(images)
        return
    try:
        groups = list(_row_groups(piece, options))
    except _UNREADABLE as error:
        found |= dict.fromkeys(images, _Seen(missing=str(error)))
        return
    for group in groups:
        held = [row for row in rows if group.first_row <= row < group.first_row + group.rows]
        if held:
            narrow = {"first_row": held[0], "rows": held[-1] - held[0] + 1, "offset": group.offset, "size": group.size}
            yield piece | narrow, {numbers[row] for row in held}


def _row_groups(piece: dict[str, Any], options: ReadOptions) -> Iterator[ContainerPiece]:
    """The smallest pieces of a Parquet file: none reaches over two row groups."""
    with open_container(piece["uri"], piece["kind"]) as (file, _):
        yield from pieces(
            piece["kind"],
            file,
            piece["uri"],
            target_rows=1,
            target_bytes=1,
            image_column=options.image_column,
            label_column=options.label_column,
        )


def _seen(batch: ReadImages, wanted: set[str], options: ReadOptions) -> Iterator[tuple[str, _Seen]]:
    rows = [row for row, image in enumerate(batch.images.to_pylist()) if image in wanted]
    if not rows:
        return
    decoded = decode_images(batch.encoded.take(pa.array(rows, pa.int64())), invert=options.invert)
    for position, reason in decoded.rejected:
        yield batch.images[rows[position]].as_py(), _Seen(missing=batch.reasons.get(rows[position], reason))
    for slot, position in enumerate(decoded.rows.tolist()):
        yield batch.images[rows[position]].as_py(), _Seen(decoded.pixels[slot])
