"""The index of planned files: which files the batches of a table hold, in a few sorted segments.

    work/<table>/index/00000001-00000016.parquet    the files of batches 1 to 16

A segment replaces the plans of its batches when the next batch is planned. Its ranges are aligned: a segment covers
`BATCHES`, `BATCHES * FANOUT`, `BATCHES * FANOUT²`, … batches, and starts where a multiple of that ends. So 10,000
batches take at most 13 segments, each batch is copied into about `log(batches)` segments in all, and planners that
compact at the same time write the same segments.

A planner writes a segment when the last of its batches has its number: see `index_compaction.py`. The
rows follow from the numbers of the batches, so writing a segment twice changes nothing. Planners never delete a
segment, because another planner may be reading it. `fmnist store prune` deletes those that a larger segment has
replaced (`obsolete_segments`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from infra.storage.keys import index_folder, index_key, index_range_of
from infra.storage.object_store import ObjectStat, ObjectStore

INDEX_SCHEMA = pa.schema(
    [
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
    ]
)
"""One version of a file in one batch per row, sorted by `model_version`, `uri` and `number`. `number` is the batch's,
and `images` is the number of images that it has of the file."""

BATCHES = 16
"""Batches in the smallest segment. Up to one fewer have no segment, and their plans are read one by one."""
FANOUT = 4
"""Segments of one size that the next larger segment replaces."""


@dataclass(frozen=True, order=True)
class SegmentRange:
    """The batches that a segment covers."""

    first: int
    last: int

    def key(self, table: str) -> str:
        """Return the key of the segment."""
        return index_key(table, self.first, self.last)

    def covers(self, other: "SegmentRange") -> bool:
        """Whether this range holds all batches of another one."""
        return self.first <= other.first and other.last <= self.last


def list_segments(store: ObjectStore, table: str) -> dict[SegmentRange, ObjectStat]:
    """List all segments of a table. Takes one S3 request per 1,000 segments, which is one per 12,000 batches."""
    found = {}
    for stat in store.list(f"{index_folder(table)}/"):
        bounds = index_range_of(stat.key)
        if bounds is not None:
            found[SegmentRange(*bounds)] = stat
    return found


def choose_segments(segments: Iterable[SegmentRange]) -> list[SegmentRange]:
    """Choose segments that cover the batches from 1 without gaps or overlaps, the largest ones first."""
    largest: dict[int, SegmentRange] = {}
    for segment in segments:
        largest[segment.first] = max(segment, largest.get(segment.first, segment))
    chosen: list[SegmentRange] = []
    while found := largest.get(chosen[-1].last + 1 if chosen else 1):
        chosen.append(found)
    return chosen


def aligned_ranges(batches: int) -> Iterator[SegmentRange]:
    """Return the fewest aligned ranges that cover the first batches. Up to `BATCHES - 1` batches remain uncovered."""
    first = 1
    while (size := _largest_range(first - 1, batches - first + 1)) is not None:
        yield SegmentRange(first, first + size - 1)
        first += size


def obsolete_segments(store: ObjectStore, table: str) -> list[ObjectStat]:
    """List the segments that a larger segment has replaced.

    `modified` is the time since when no planner starts to read the segment. A planner that started earlier may still
    need it, so wait for some hours from then before you delete it.
    """
    segments = list_segments(store, table)
    obsolete = []
    for segment, stat in segments.items():
        larger = [entry for other, entry in segments.items() if other != segment and other.covers(segment)]
        if larger:
            replaced = min(entry.modified for entry in larger)
            obsolete.append(replace(stat, modified=max(stat.modified, replaced)))
    return obsolete


def _largest_range(before: int, batches: int) -> int | None:
    """Return the size of the largest range that may follow `before` batches and has at most `batches`."""
    if batches < BATCHES:
        return None
    size = BATCHES
    while size * FANOUT <= batches and before % (size * FANOUT) == 0:
        size *= FANOUT
    return size
