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

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats import pieces
from fmnist_model.formats.interface import ContainerPiece
from fmnist_model.images.decode import decode_images
from fmnist_model.reports.batch import ShownImage
from infra.errors import RequestError
from infra.storage.batch_plan import PIECE_SCHEMA, ShardInputs, find_plan
from infra.storage.input_files import InputUnreadable
from infra.storage.object_store import ObjectStore
from infra.storage.prediction_table import BatchManifest
from tasks.classification.inputs import open_container
from tasks.classification.options import ReadOptions
from tasks.classification.read import ReadImages, check_version, container_batches, read_shard

GALLERY_IMAGES = 20
_MOST_BYTES = 2**30
"""Read for a gallery, at most: an image in a container may lie behind much else."""
_NEAR_BYTES = 8 * 2**20
"""Between two row groups that are read in one go, at most."""
_UNREADABLE = (InputUnreadable, InvalidDataset, RequestError, OSError, pa.ArrowException)
_FRAGMENT = re.compile(r"#(?:row|member)=")


def least_confident(
    store: ObjectStore, manifest: BatchManifest, rows: Any, count: int = GALLERY_IMAGES
) -> list[ShownImage]:
    """The images of a committed batch with the lowest confidence, the lowest first.

    An image that is gone, was changed since or can't be read has no pixels, and says why.

    Args:
        store: where the batch is.
        manifest: the batch's.
        rows: its rows, as `open_rows` opens them.
        count: of images, at most.
    """
    least = _least_confident_rows(rows, count)
    found = _Pixels(store, manifest).of(least)
    return [
        ShownImage(
            uri=row["image"],
            probabilities=row["probabilities"],
            label=row["label"],
            pixels=found[row["image"]].pixels,
            missing=found[row["image"]].missing,
        )
        for row in least
    ]


def _least_confident_rows(rows: Any, count: int) -> list[dict[str, Any]]:
    """Rows with `image`, `confidence`, `probabilities`, `label` and `shard`; memory does not grow with the batch."""
    from pyarrow import dataset

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
        self._options = ReadOptions.from_record(manifest.options)
        self._bytes_left = _MOST_BYTES

    def of(self, rows: list[dict[str, Any]]) -> dict[str, _Seen]:
        """The pixels of these rows' images, or why there are none, by URI."""
        found = {row["image"]: _Seen() for row in rows}
        for piece, images in self._pieces(rows):
            try:
                if piece["kind"] == "image":
                    self._read(piece, {piece["uri"]}, read_shard(_table(piece), self._options), found)
                else:
                    self._read_container(piece, images, found)
            except _UNREADABLE as error:
                missing = (image for image in images if found[image].pixels is None)
                found |= dict.fromkeys(missing, _Seen(missing=str(error)))
        return found

    def _pieces(self, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """The pieces of the plan that may hold the images of rows; one of a container, whose images have numbers."""
        plan = find_plan(self._store, self._manifest.table, self._manifest.batch)
        if plan is None or not rows:
            return
        inputs = ShardInputs(self._store, plan)
        by_shard = defaultdict(list)
        for row in rows:
            by_shard[row["shard"]].append(row["image"])
        numbered: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for shard, images in by_shard.items():
            files = pa.array({file for image in images for file in _files(image)}, pa.string())
            shard_inputs = inputs.of(shard).select(PIECE_SCHEMA.names)
            for piece in shard_inputs.filter(pc.is_in(shard_inputs.column("uri"), files)).to_pylist():
                held = [image for image in images if _may_hold(piece, image)]
                if held and all(_row_of(piece, image) is not None for image in held):
                    numbered.setdefault(piece["uri"], (piece, []))[1].extend(held)
                elif held:
                    yield piece, held
        yield from numbered.values()

    def _read_container(self, piece: dict[str, Any], images: list[str], found: dict[str, _Seen]) -> None:
        """Read images of a container, which is opened once: on S3, that alone is two requests."""
        check_version(piece)
        with open_container(piece["uri"], piece["kind"], to_read=True) as opened:
            for narrow, wanted in _narrowed(piece, images, opened[0], self._options, found):
                if wanted:
                    self._read(narrow, wanted, container_batches(opened, narrow, self._options), found)

    def _read(
        self, piece: dict[str, Any], wanted: set[str], batches: Iterator[ReadImages], found: dict[str, _Seen]
    ) -> None:
        """Read a piece until all that is wanted of it was found."""
        if piece["size"] > self._bytes_left:
            found |= dict.fromkeys(wanted, _Seen(missing=f"{piece['size']:,} bytes would have to be read for it"))
            return
        self._bytes_left -= piece["size"]
        missing, reason = set(wanted), "it is not in its file any more"
        for batch in batches:
            for image, seen in _seen(batch, missing, self._options):
                found[image] = seen
                missing.discard(image)
            if not missing:
                return
            reason = next(iter(batch.reasons.values()), reason)
        found |= dict.fromkeys(missing, _Seen(missing=reason))


def _table(piece: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([piece], schema=PIECE_SCHEMA)


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
    piece: dict[str, Any], images: list[str], file: Any, options: ReadOptions, found: dict[str, _Seen]
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
    for read in _reads(_row_groups(piece, file, options), rows):
        held = [row for row in rows if read[0].first_row <= row < read[-1].first_row + read[-1].rows]
        span = {"first_row": held[0], "rows": held[-1] - held[0] + 1}
        size = sum(group.size for group in read)
        yield piece | span | {"offset": read[0].offset, "size": size}, {numbers[row] for row in held}


def _reads(groups: list[ContainerPiece], rows: list[int]) -> list[list[ContainerPiece]]:
    """Row groups with wanted rows, and with what is between two of them where that is little: a read costs requests."""
    reads: list[list[ContainerPiece]] = []
    between: list[ContainerPiece] = []
    for group in groups:
        if not any(group.first_row <= row < group.first_row + group.rows for row in rows):
            between.append(group)
            continue
        if reads and sum(other.size for other in between) <= _NEAR_BYTES:
            reads[-1] += [*between, group]
        else:
            reads.append([group])
        between = []
    return reads


def _row_groups(piece: dict[str, Any], file: Any, options: ReadOptions) -> list[ContainerPiece]:
    """The smallest pieces of a Parquet file: none reaches over two row groups."""
    columns = {"image_column": options.image_column, "label_column": options.label_column}
    return list(pieces(piece["kind"], file, piece["uri"], target_rows=1, target_bytes=1, **columns))


def _seen(batch: ReadImages, wanted: set[str], options: ReadOptions) -> Iterator[tuple[str, _Seen]]:
    rows = [row for row, image in enumerate(batch.images.to_pylist()) if image in wanted]
    if not rows:
        return
    decoded = decode_images(batch.encoded.take(pa.array(rows, pa.int64())), invert=options.invert)
    for position, reason in decoded.rejected:
        yield batch.images[rows[position]].as_py(), _Seen(missing=batch.reasons.get(rows[position], reason))
    for slot, position in enumerate(decoded.rows.tolist()):
        yield batch.images[rows[position]].as_py(), _Seen(decoded.pixels[slot])
