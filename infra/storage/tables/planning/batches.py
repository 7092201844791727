"""The batches of a table, numbered in the order of their plans.

    work/<table>/batches/00000012.json    created on condition that nobody else has created it

A planner leaves out the images of all batches that it has read, and takes the next number. If another planner took
that number meanwhile, it plans again. So an image is never in two batches of the same model.

A planner doesn't read all these objects. The segments of the index (`index.py`) replace the first ones, and
fewer than `index.BATCHES` remain to be read one by one.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel

from infra.errors import JobError, JobStopped
from infra.storage.keys import index_key, number_key, number_of, numbers_folder, table_folder, work_folder
from infra.storage.object_store import ObjectExists, ObjectNotFound, ObjectStore
from infra.storage.tables.delta import PARTITION, DeltaSnapshot, open_delta
from infra.storage.tables.planning.index import SegmentRange, choose_segments, list_segments

FOOTER = b"fmnist_segment"
"""Key of the `SegmentFooter` in the metadata of a segment's Parquet file."""

_READS_AT_ONCE = 16
_NUMBERED_ID = re.compile(r"(\d{8,})-")


class NumberTaken(JobError):
    """Another planner has taken the number."""


class NumberedBatch(BaseModel, frozen=True):
    """A batch whose plan is in the store."""

    number: int
    batch: str
    model_version: str
    options: dict[str, Any]


class SegmentFooter(BaseModel, frozen=True):
    """What a segment of the index knows about its batches."""

    first: int
    """Number of the first batch."""
    last: int
    """Number of the last batch."""
    options: dict[str, dict[str, Any]]
    """Options by model version."""
    unfinished: list[NumberedBatch]
    """Batches that were not committed when the segment was written. All others are."""
    table_version: int
    """Version of `predictions/<table>` at that time, or -1 if there was no table. If the table is older now, it was
    restored from a backup, and any batch may be missing from it."""

    @property
    def range(self) -> SegmentRange:
        """The batches that the segment covers."""
        return SegmentRange(self.first, self.last)


@dataclass(frozen=True)
class Catalog:
    """All batches of a table: those that the index covers, and the tail that it doesn't cover yet."""

    table: str
    segments: list[SegmentFooter]
    """Segments of the index. They cover the first batches without gaps."""
    tail: list[NumberedBatch]
    """All later batches, in the order of their numbers."""
    unfinished: list[NumberedBatch]
    """Batches that are not committed, in the order of their numbers."""
    table_version: int
    """Version of `predictions/<table>` after everything else was read, or -1 if there is no table."""

    @property
    def next_number(self) -> int:
        """Number of the next batch."""
        covered = self.segments[-1].last if self.segments else 0
        return (self.tail[-1].number if self.tail else covered) + 1

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Options by model version. All batches of a model have the same options."""
        return options_by_model(self.segments, self.tail)

    @property
    def stale(self) -> frozenset[SegmentRange]:
        """Segments that don't know which batches are unfinished, because the table was restored from a backup."""
        return frozenset(segment.range for segment in self.segments if segment.table_version > self.table_version)

    def with_batch(self, entry: NumberedBatch) -> "Catalog":
        """Return the catalog after a batch has taken `next_number`."""
        return replace(self, tail=[*self.tail, entry], unfinished=[*self.unfinished, entry])


def read_catalog(store: ObjectStore, table: str) -> Catalog:
    """Read which batches a table has.

    The work doesn't depend on the number of batches. On S3, it takes a listing of the segments and one of the tail,
    up to three requests for each of at most 13 segments (for up to 10,000 batches), one for each of at most 15 batches
    of the tail, and one that looks for a batch that the listing doesn't show yet. Delta's log takes more.

    Raises:
        JobStopped: a segment or a batch in the middle is missing, or the table holds a batch that `work/<table>` lacks.
    """
    ranges = choose_segments(list_segments(store, table))
    with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
        segments = list(threads.map(lambda found: _read_footer(store, table, found), ranges))
    covered = ranges[-1].last if ranges else 0
    tail = _read_tail(store, table, covered)
    predictions = open_delta(store, table_folder(table))
    committed = _partitions(predictions)
    newest = _newest_number(predictions, committed)
    if newest > covered + len(tail):
        # Another run may have planned and committed it in the meantime.
        tail = _read_tail(store, table, covered)
    if newest > covered + len(tail):
        raise JobStopped(
            f"{store.uri(table_folder(table))} holds batch number {newest} or a later one, but "
            f"{store.uri(work_folder(table))} only has {covered + len(tail)} batches. Restore that folder, or classify "
            "into another table."
        )
    catalog = Catalog(
        table=table,
        segments=segments,
        tail=tail,
        unfinished=[],
        table_version=predictions.table.version() if predictions else -1,
    )
    candidates: list[NumberedBatch] = []
    for segment in segments:
        numbers = range(segment.first, segment.last + 1)
        candidates += _read_numbers(store, table, numbers) if segment.range in catalog.stale else segment.unfinished
    unfinished = [
        entry
        for entry in (*candidates, *tail)
        if entry.batch not in committed and not (predictions and predictions.holds(entry.batch))
    ]
    return replace(catalog, unfinished=unfinished)


def unfinished_batches(store: ObjectStore, table: str) -> list[NumberedBatch]:
    """Return the batches of a table that are planned but not committed, in the order of their numbers.

    Raises:
        JobStopped: see `read_catalog`.
    """
    return read_catalog(store, table).unfinished


def list_batches(store: ObjectStore, table: str) -> list[NumberedBatch]:
    """Return all batches of a table, in the order of their numbers. Takes one request per batch.

    Raises:
        JobStopped: a batch in the middle is missing.
    """
    return _read_tail(store, table, 0)


def take_number(store: ObjectStore, table: str, entry: NumberedBatch) -> None:
    """Give a number to a batch whose plan is in the store.

    Raises:
        NumberTaken: another batch has this number.
    """
    try:
        store.create(number_key(table, entry.number), entry.model_dump_json().encode())
    except ObjectExists:
        raise NumberTaken(f"Another planner has taken number {entry.number} of table {table}.") from None


def options_by_model(segments: Iterable[SegmentFooter], batches: Iterable[NumberedBatch]) -> dict[str, dict[str, Any]]:
    """Return the options of the first batch of each model version."""
    options: dict[str, dict[str, Any]] = {}
    for segment in segments:
        options = segment.options | options
    for entry in batches:
        options.setdefault(entry.model_version, entry.options)
    return options


def _read_footer(store: ObjectStore, table: str, found: SegmentRange) -> SegmentFooter:
    key = index_key(table, found.first, found.last)
    filesystem, path = store.arrow(key)
    try:
        metadata = pq.read_metadata(path, filesystem=filesystem).metadata
    except FileNotFoundError:
        raise JobStopped(f"{store.uri(key)} was deleted while it was being read. Run it again.") from None
    return SegmentFooter.model_validate_json(metadata[FOOTER])


def _read_tail(store: ObjectStore, table: str, covered: int) -> list[NumberedBatch]:
    """Read the batches after number `covered`. A listing that lags behind doesn't hide any."""
    after = number_key(table, covered) if covered else ""
    listed = [number_of(stat.key) or 0 for stat in store.list(f"{numbers_folder(table)}/", after=after)]
    entries = _read_numbers(store, table, range(covered + 1, max(listed, default=covered) + 1))
    while True:
        try:
            data = store.read(number_key(table, covered + len(entries) + 1))
        except ObjectNotFound:
            return entries
        entries.append(NumberedBatch.model_validate_json(data))


def _read_numbers(store: ObjectStore, table: str, numbers: Iterable[int]) -> list[NumberedBatch]:
    def read(number: int) -> NumberedBatch:
        key = number_key(table, number)
        try:
            return NumberedBatch.model_validate_json(store.read(key))
        except ObjectNotFound:
            raise JobStopped(
                f"{store.uri(key)} is missing, but later batches exist. Restore the object, or classify into another "
                "table."
            ) from None

    with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
        return list(threads.map(read, numbers))


def _partitions(predictions: DeltaSnapshot | None) -> set[str]:
    """Return the batches with rows. They are in memory, but each look for a transaction reads the log again."""
    return {partition[PARTITION] for partition in predictions.table.partitions()} if predictions else set()


def _newest_number(predictions: DeltaSnapshot | None, batches: set[str]) -> int:
    """Return the largest number in the ids of the batches with rows. Ids from before Delta Lake have none."""
    if predictions is None or predictions.table.version() == 0:
        return 0
    return max((int(found[1]) for batch in batches if (found := _NUMBERED_ID.match(batch))), default=1)
