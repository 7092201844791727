"""Shard records: which attempt at a shard counts, and what became of its images.

    work/<table>/<batch>/shards/00017-0.json

The first attempt that creates the record wins. If its parts turn out to be missing or damaged, a successor with the
next number replaces it. Nobody overwrites or deletes a record.
"""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from pydantic import BaseModel

from infra.storage.keys import (
    parts_folder,
    quarantine_folder,
    record_key,
    record_of,
    records_folder,
    table_folder,
)
from infra.storage.object_store import ObjectExists, ObjectNotFound, ObjectStat, ObjectStore
from infra.storage.tables.parts import PartFile, is_intact
from infra.storage.tables.planning.plan import BatchPlan

_READS_AT_ONCE = 16
_Number = TypeVar("_Number", int, float)


OTHER_REASONS = "other reasons"
"""The reason of an entry that sums up rare reasons of the same kind."""


class Reason(BaseModel, frozen=True):
    """Images that were quarantined for the same reason."""

    kind: str
    """The reason's first words: `damaged`, `vanished`, …"""
    reason: str
    """The reason without the parts that differ between images."""
    images: int
    example: str
    """URI of one of the images."""


@dataclass(frozen=True, slots=True)  # 10,000 records in memory have a million
class ConfusionCell:
    """Number of images of a true class that were predicted as another class, or the same."""

    label: int
    predicted: int
    images: int


class PredictionSummary(BaseModel):
    """What reports and drift need to know about predictions, so that nothing reads the rows again."""

    class_counts: list[int] = []
    """Images by predicted class."""
    confidence_sums: list[float] = []
    """Sum of the confidence by predicted class."""
    confidence_histogram: list[int] = []
    """Images by confidence, in bins of equal width from 0 to 1."""
    confusion: list[ConfusionCell] = []
    """Cells that aren't zero. Images without a true class aren't in it."""

    @classmethod
    def total(cls, summaries: "Iterable[PredictionSummary]") -> "PredictionSummary":
        """Add up summaries."""
        counts: list[int] = []
        sums: list[float] = []
        histogram: list[int] = []
        cells: dict[tuple[int, int], int] = {}
        for summary in summaries:
            counts = _add(counts, summary.class_counts)
            sums = _add(sums, summary.confidence_sums)
            histogram = _add(histogram, summary.confidence_histogram)
            for cell in summary.confusion:
                cells[cell.label, cell.predicted] = cells.get((cell.label, cell.predicted), 0) + cell.images
        confusion = [ConfusionCell(label=key[0], predicted=key[1], images=n) for key, n in sorted(cells.items())]
        return cls(class_counts=counts, confidence_sums=sums, confidence_histogram=histogram, confusion=confusion)


@dataclass(frozen=True, slots=True)
class LeastConfident:
    """A prediction with low confidence, for the report."""

    image: str
    confidence: float
    probabilities: list[float]
    label: int | None


class ShardRecord(BaseModel):
    """The result of the attempt at a shard that counts: `predicted + quarantined == planned`."""

    shard: int
    number: int = 0
    """0, or how many records of this shard came before."""
    planned: int
    predicted: int
    quarantined: int
    seconds: float = 0.0
    """Time from the first read to the last write."""
    parts: list[PartFile] = []
    """Parts with predictions."""
    quarantine: list[PartFile] = []
    """Parts with quarantined images."""
    reasons: list[Reason] = []
    summary: PredictionSummary = PredictionSummary()
    least_confident: list[LeastConfident] = []


def summed_reasons(reasons: Iterable[Reason], limit: int) -> list[Reason]:
    """Add up equal reasons. Keep the most frequent ones, and sum up the rest by kind, so that no image is lost.

    Args:
        reasons: reasons of several shards.
        limit: number of reasons that stay on their own.

    Returns:
        The most frequent reasons first, then one entry of `OTHER_REASONS` for each kind.
    """
    added = _added(reasons)
    named = sorted((entry for entry in added if entry.reason != OTHER_REASONS), key=_rank)
    rest = [entry.model_copy(update={"reason": OTHER_REASONS}) for entry in named[limit:]]
    others = _added([*(entry for entry in added if entry.reason == OTHER_REASONS), *rest])
    return [*named[:limit], *sorted(others, key=_rank)]


def _added(reasons: Iterable[Reason]) -> list[Reason]:
    first: dict[tuple[str, str], Reason] = {}
    images: Counter[tuple[str, str]] = Counter()
    for entry in reasons:
        key = entry.kind, entry.reason
        first.setdefault(key, entry)
        images[key] += entry.images
    return [entry.model_copy(update={"images": images[key]}) for key, entry in first.items()]


def _rank(reason: Reason) -> tuple[int, str, str]:
    return -reason.images, reason.reason, reason.kind


def create_record(store: ObjectStore, plan: BatchPlan, record: ShardRecord) -> ShardRecord:
    """Create a shard's record, and return the one that counts: this one, or another attempt's that came first."""
    key = record_key(plan.table, plan.batch, record.shard, record.number)
    try:
        store.create(key, record.model_dump_json().encode())
    except ObjectExists:
        found = ShardRecord.model_validate_json(store.read(key))
        return record if found == record else found  # it is equal if only the answer to our own request was lost
    return record


def read_record(store: ObjectStore, plan: BatchPlan, shard: int, number: int) -> ShardRecord | None:
    """Read one record of a shard, or return None if it doesn't exist."""
    try:
        return ShardRecord.model_validate_json(store.read(record_key(plan.table, plan.batch, shard, number)))
    except ObjectNotFound:
        return None


def read_records(store: ObjectStore, plan: BatchPlan) -> dict[int, ShardRecord]:
    """Read the newest record of each finished shard. The listing may miss records written at the same moment."""
    newest: dict[int, int] = {}
    folder = f"{records_folder(plan.table, plan.batch)}/"
    for stat in store.list(folder):
        found = record_of(stat.key.removeprefix(folder))
        if found is not None and found[0] < plan.shards:
            newest[found[0]] = max(found[1], newest.get(found[0], 0))
    with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
        records = threads.map(lambda entry: read_record(store, plan, *entry), newest.items())
        return {record.shard: record for record in records if record is not None}


def damaged_shards(store: ObjectStore, plan: BatchPlan, records: Iterable[ShardRecord]) -> dict[int, str]:
    """Find shards whose parts are missing or damaged.

    Takes one listing per table and thousand parts. A part is read only if its ETag has changed.

    Returns:
        Key of the first bad part, by shard.
    """
    bad: dict[int, str] = {}
    entries = list(records)
    predictions = [(record.shard, part) for record in entries for part in record.parts]
    quarantine = [(record.shard, part) for record in entries for part in record.quarantine]
    for folder, parts in ((table_folder(plan.table), predictions), (quarantine_folder(plan.table), quarantine)):
        listed = store.list(f"{parts_folder(folder, plan.batch)}/") if parts else ()
        found = {stat.key: stat for stat in listed}
        for shard, part in parts:
            key = f"{folder}/{part.name}"
            if not _is_there(store, folder, part, found.get(key) or store.stat(key)):
                bad.setdefault(shard, key)
    return bad


def _is_there(store: ObjectStore, folder: str, part: PartFile, found: ObjectStat | None) -> bool:
    return found is not None and is_intact(store, folder, part, found.size, found.etag)


def _add(total: list[_Number], more: list[_Number]) -> list[_Number]:
    return [a + b for a, b in zip_longest(total, more, fillvalue=type(more[0])(0))] if more else total
