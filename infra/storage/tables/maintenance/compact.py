"""Compact a prediction table: merge the small parts of its batches into large ones.

`batch` is the partition column, so parts of different batches can't share a file. So the rows of small consecutive
batches of one model version move into the partition of the newest of them. Batches still exist by their application
transactions, so planning and the books know each of them.

The books say first where the rows of a batch belong (`compacted_into`). Then the rows follow, first those of the
predictions, then those of the quarantine. If a compaction is killed in between, the next one finds in the books which
rows are still elsewhere, and moves them to the same place. The other order would leave rows whose original batch no
longer has them, without a trace of where they are.

Two compactions at once don't disturb each other: each commit carries the table's maintenance transaction, so one of two
fails and starts again from a new snapshot.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.errors import RequestError
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import BatchBooks, read_books
from infra.storage.tables.commit import PartSchemas
from infra.storage.tables.delta import DeltaSnapshot, TablePart, open_delta
from infra.storage.tables.maintenance.rewrite import (
    provenance_of,
    read_part,
    repeat_until_committed,
    rewrite_books,
    write_rows,
)
from infra.storage.tables.parts import PartFile

PART_BYTES, PART_ROWS = 64 * 2**20, 1_000_000
"""Size of a part to aim for: whichever is reached first."""


@dataclass
class Compacted:
    """The result of a compaction."""

    batches_merged: int = 0
    """Batches whose rows moved into the partition of a later batch."""
    parts_before: int = 0
    """Parts of predictions and quarantine before."""
    parts_after: int = 0
    """Parts of predictions and quarantine after."""


@dataclass(frozen=True)
class _Unit:
    """Batches whose rows belong into one partition."""

    root: BatchBooks
    """The batch that has the partition."""
    members: tuple[str, ...]
    """Ids of all batches whose rows belong there, `root` included."""
    size: int
    rows: int

    @property
    def is_small(self) -> bool:
        return self.size < PART_BYTES // 2 and self.rows < PART_ROWS // 2


def compact(store: ObjectStore, table: str, schemas: PartSchemas) -> Compacted:
    """Merge small parts of a table's committed batches.

    The newest row of each image stays, with its model version and file version. `batch` changes. If batches that are
    merged hold several rows of one image, only the newest stays. Parts from before Delta Lake come out in the current
    schema. Replaced files stay until `fmnist store prune` removes them.

    Args:
        store: store of the table.
        table: name of the prediction table.
        schemas: current schemas of the parts.

    Raises:
        RequestError: the table has no committed batch.
        PartUnreadable: a part is missing or has a schema that is unknown.
        StoreUnavailable: the store is down. Repeat the compaction to finish it.
    """
    books = read_books(store, table)
    if not books:
        raise RequestError(f"{store.root} has no table {table!r} with a committed batch.")
    by_batch = {entry.batch: entry for entry in books}
    groups = _grouped(_units(store, table, books), books)
    targets = {member: group[-1].root.batch for group in groups for unit in group for member in unit.members}
    result = Compacted(parts_before=_count_parts(store, table))
    result.batches_merged = _record_targets(store, table, targets, by_batch)
    for folder, schema in ((table_folder(table), schemas.predictions), (quarantine_folder(table), schemas.quarantine)):
        for group in groups:
            _move(_Rewriting(store, folder, schema, by_batch), group)
    result.parts_after = _count_parts(store, table)
    return result


def _units(store: ObjectStore, table: str, books: Sequence[BatchBooks]) -> dict[str, _Unit]:
    """Return the units that have parts, by the batch whose partition they belong into."""
    size: dict[str, int] = {}
    rows: dict[str, int] = {}
    for folder in (table_folder(table), quarantine_folder(table)):
        snapshot = open_delta(store, folder)
        for part in snapshot.parts() if snapshot else []:
            size[part.batch] = size.get(part.batch, 0) + part.size
            rows[part.batch] = rows.get(part.batch, 0) + part.rows
    members: dict[str, list[str]] = {}
    for entry in books:
        members.setdefault(entry.compacted_into or entry.batch, []).append(entry.batch)
    units = (
        _Unit(
            root,
            tuple(members[root.batch]),
            sum(size.get(member, 0) for member in members[root.batch]),
            sum(rows.get(member, 0) for member in members[root.batch]),
        )
        for root in books
        if root.batch in members
    )
    return {unit.root.batch: unit for unit in units if unit.rows}


def _grouped(units: Mapping[str, _Unit], books: Sequence[BatchBooks]) -> list[list[_Unit]]:
    """Group units whose rows can share a part, in the order of their numbers.

    A batch that isn't committed yet separates groups, because its rows will be newer than those before it and older
    than those after it. So does a large batch of the same model.
    """
    done: list[list[_Unit]] = []
    growing: dict[tuple[str, str], list[_Unit]] = {}
    previous = 0
    for entry in books:
        if entry.number != previous + 1:
            done += growing.values()
            growing = {}
        previous = entry.number
        unit = units.get(entry.batch)
        if unit is None:
            continue
        kind = entry.model_version, json.dumps(entry.options, sort_keys=True)
        group = growing.get(kind, [])
        fits = unit.is_small and all(other.is_small for other in group) and _fits([*group, unit])
        if group and not fits:
            done.append(group)
            group = []
        growing[kind] = [*group, unit]
    return [*done, *growing.values()]


def _fits(units: Sequence[_Unit]) -> bool:
    return sum(unit.size for unit in units) <= PART_BYTES and sum(unit.rows for unit in units) <= PART_ROWS


def _count_parts(store: ObjectStore, table: str) -> int:
    snapshots = (open_delta(store, folder) for folder in (table_folder(table), quarantine_folder(table)))
    return sum(len(snapshot.parts()) for snapshot in snapshots if snapshot)


def _record_targets(
    store: ObjectStore, table: str, targets: Mapping[str, str], by_batch: Mapping[str, BatchBooks]
) -> int:
    """Record in the books into whose partition the rows of each batch belong. Return how many batches are new there."""
    merged: set[str] = set()

    def number(batch: str) -> float:
        return by_batch[batch].number if batch in by_batch else math.inf

    def change(entry: BatchBooks) -> BatchBooks:
        target = targets.get(entry.batch, entry.batch)
        # A compaction that started later may have named a later batch.
        if target == entry.batch or (entry.compacted_into and number(entry.compacted_into) >= number(target)):
            return entry
        if entry.compacted_into is None:
            merged.add(entry.batch)
        return entry.model_copy(update={"compacted_into": target})

    rewrite_books(store, table, change)
    return len(merged)


@dataclass(frozen=True)
class _Rewriting:
    """Rewrite parts of one Delta table."""

    store: ObjectStore
    folder: str
    schema: pa.Schema
    books: Mapping[str, BatchBooks]

    def merge(self, batch: str, parts: Sequence[TablePart]) -> list[PartFile]:
        """Write the rows of parts as one new part of a batch.

        Args:
            batch: the batch that gets the part.
            parts: parts in the order of their batches' numbers.
        """
        newest = self._newest_rows(parts)
        schema = self.schema.with_metadata(provenance_of(self.store, self.folder, parts[-1]))

        def rows() -> Iterator[pa.RecordBatch]:
            position = 0
            for chunk in self._read(parts):
                keep = newest[position : position + len(chunk)]
                position += len(chunk)
                yield chunk if keep.all() else chunk.filter(pa.array(keep))

        return write_rows(self.store, self.folder, batch, schema, rows())

    def _newest_rows(self, parts: Sequence[TablePart]) -> NDArray[np.bool_]:
        """Return which rows are the newest of their images, by the file's version and then by their order."""
        read = [chunk.select(["image", "file_version"]) for chunk in self._read(parts)]
        rows = pa.Table.from_batches(read)
        versions = rows.column("file_version").to_numpy().astype(np.int64)
        ranks = versions * 2**31 + np.arange(len(versions))
        ranked = pa.table({"image": rows.column("image"), "rank": ranks})
        newest = ranked.group_by("image", use_threads=False).aggregate([("rank", "max")]).column("rank_max")
        keep = np.zeros(len(versions), np.bool_)
        keep[newest.to_numpy() % 2**31] = True
        return keep

    def _read(self, parts: Iterable[TablePart]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            yield from read_part(self.store, self.folder, part, self.schema, self.books[part.batch])


def _move(rewriting: _Rewriting, group: Sequence[_Unit]) -> None:
    """Bring the rows of a group into the partition of its newest batch, in few parts."""
    members = {member for unit in group for member in unit.members}
    target = group[-1].root.batch

    def attempt(snapshot: DeltaSnapshot) -> bool:
        parts = _parts_to_merge([part for part in snapshot.parts() if part.batch in members], target)
        if not parts:
            return True
        parts.sort(key=lambda part: (rewriting.books[part.batch].number, part.name))
        written = [file for chunk in _chunks(parts) for file in rewriting.merge(target, chunk)]
        # The newest rows stay, so readers that follow changes have nothing to read again.
        return snapshot.replace(target, [part.name for part in parts], written, data_change=False)

    repeat_until_committed(rewriting.store, rewriting.folder, attempt)


def _parts_to_merge(parts: Sequence[TablePart], target: str) -> list[TablePart]:
    """Return the parts to rewrite: small ones, those of other partitions, and those from before Delta Lake."""
    small = [part for part in parts if part.size < PART_BYTES // 2 and part.rows < PART_ROWS // 2]
    due = [part for part in parts if part.batch != target or not part.name.startswith("_parts/")]
    if not due and len(small) < 2:
        return []
    return list({part.name: part for part in [*due, *small]}.values())


def _chunks(parts: Sequence[TablePart]) -> Iterator[list[TablePart]]:
    """Cut parts into runs that fit into one part each."""
    chunk: list[TablePart] = []
    for part in parts:
        size, rows = (sum(values) for values in zip(*((p.size, p.rows) for p in [*chunk, part]), strict=True))
        if chunk and (size > PART_BYTES or rows > PART_ROWS):
            yield chunk
            chunk = []
        chunk.append(part)
    if chunk:
        yield chunk
