"""Find what committed batches of a table have left and nothing needs any more.

Only files of committed batches are ever found. A batch is committed for good, and from then on nobody reads its shard
records or adds parts that its attempts wrote. So a worker that was suspended and wakes up later can't do harm: its part
is in no snapshot, and its record is never read, even if it creates it again after it was removed. Both are found the
next time.

Compaction and deletion do add parts to committed batches. Such a part looks like a leftover until it is
committed. So before anything is removed, `fence` commits the table's maintenance transaction. A process that wrote
parts for an older snapshot then fails to commit them, and writes new ones.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Literal

from infra.storage.keys import (
    batch_of_part,
    index_folder,
    number_key,
    numbers_folder,
    plan_key,
    quarantine_folder,
    records_folder,
    table_folder,
    work_folder,
)
from infra.storage.object_store import ObjectNotFound, ObjectStat, ObjectStore
from infra.storage.tables.delta import DeltaSnapshot, open_delta
from infra.storage.tables.maintenance.rewrite import repeat_until_committed
from infra.storage.tables.planning.batches import NumberedBatch
from infra.storage.tables.planning.index import obsolete_segments

_BATCH = re.compile(r"(\d{8,})-[0-9a-f]{16}")


@dataclass(frozen=True)
class Leftovers:
    """Objects of one batch that nothing needs."""

    kind: Literal["parts", "records", "plan", "index"]
    folder: str
    """Key of the folder that holds them."""
    objects: list[ObjectStat]
    reason: str


def table_leftovers(store: ObjectStore, table: str, before: datetime, *, dry_run: bool = False) -> Iterator[Leftovers]:
    """Find the leftovers of a table.

    Args:
        store: store of the table.
        table: name of the prediction table.
        before: parts, records and plans that were written later are kept. So are parts that a snapshot since then
            still held, for time travel.
        dry_run: whether the caller removes nothing, so that no fence is needed.
    """
    predictions = open_delta(store, table_folder(table))
    for folder in (table_folder(table), quarantine_folder(table)):
        if predictions is None:
            break
        by_batch: dict[str, list[ObjectStat]] = {}
        for batch, stat in _replaced_parts(store, predictions, folder, before, dry_run=dry_run):
            by_batch.setdefault(batch, []).append(stat)
        for batch, objects in by_batch.items():
            yield Leftovers("parts", f"{folder}/_parts/batch={batch}", objects, "replaced, or of a slower attempt")
    yield from _work_leftovers(store, table, predictions, before)
    # A planner that was suspended for longer than the minimum age fails to read its segment, and plans again.
    obsolete = [stat for stat in obsolete_segments(store, table) if stat.modified < before]
    if obsolete:
        yield Leftovers("index", index_folder(table), obsolete, "replaced by a larger segment")


def unreferenced_parts(
    store: ObjectStore, predictions: DeltaSnapshot, folder: str, before: datetime | None = None
) -> list[tuple[str, ObjectStat]]:
    """List the parts of committed batches that the current snapshot of a Delta table doesn't hold, by batch.

    Those that maintenance in progress is about to commit are among them, see `fence`.

    Args:
        store: store of the table.
        predictions: snapshot of the predictions that says which batches are committed.
        folder: folder of the predictions or of the quarantine.
        before: skips parts that were written later.
    """
    found, is_committed = [], cache(predictions.holds)  # each look reads the log
    for stat in store.list(f"{folder}/"):
        batch = batch_of_part(stat.key.removeprefix(f"{folder}/"))
        if batch and is_committed(batch) and (before is None or stat.modified < before):
            found.append((batch, stat))
    snapshot = open_delta(store, folder)
    held = {f"{folder}/{part.name}" for part in snapshot.parts()} if snapshot else set()
    return [(batch, stat) for batch, stat in found if stat.key not in held]


def fence(store: ObjectStore, folder: str) -> None:
    """Make all maintenance in progress on a Delta table start again with a new snapshot and new parts."""
    repeat_until_committed(store, folder, lambda snapshot: snapshot.replace_all([], {}, data_change=False))


def _replaced_parts(
    store: ObjectStore, predictions: DeltaSnapshot, folder: str, before: datetime, *, dry_run: bool
) -> list[tuple[str, ObjectStat]]:
    found = unreferenced_parts(store, predictions, folder, before)
    # The quarantine from before Delta Lake stays: no snapshot ever held these files.
    found = [(batch, stat) for batch, stat in found if "/_errors/" not in stat.key]
    if not found:
        return []
    if not dry_run:
        fence(store, folder)
    snapshot = open_delta(store, folder)
    held = {part.name for part in snapshot.parts()} if snapshot else set()
    needed = held | _removed_since(store, folder, before)
    return [(batch, stat) for batch, stat in found if stat.key.removeprefix(f"{folder}/") not in needed]


def _removed_since(store: ObjectStore, folder: str, moment: datetime) -> set[str]:
    """Return the parts that commits since a moment have removed from a Delta table."""
    removed = set()
    for stat in store.list(f"{folder}/_delta_log/"):
        if stat.key.endswith(".json") and stat.modified >= moment:
            for line in store.read(stat.key).splitlines():
                removal = json.loads(line).get("remove")
                if removal:
                    removed.add(removal["path"])
    return removed


def _work_leftovers(
    store: ObjectStore, table: str, predictions: DeltaSnapshot | None, before: datetime
) -> Iterator[Leftovers]:
    folders: dict[str, list[ObjectStat]] = {}
    apart = (f"{numbers_folder(table)}/", f"{index_folder(table)}/")
    for stat in store.list(f"{work_folder(table)}/"):
        batch = stat.key.removeprefix(f"{work_folder(table)}/").partition("/")[0]
        if _BATCH.fullmatch(batch) and not stat.key.startswith(apart):
            folders.setdefault(batch, []).append(stat)
    for batch, objects in folders.items():
        if predictions is not None and predictions.holds(batch):
            shards = f"{records_folder(table, batch)}/"
            records = [stat for stat in objects if stat.key.startswith(shards) and stat.modified < before]
            if records:
                yield Leftovers("records", shards.removesuffix("/"), records, "of shards of a committed batch")
        elif all(stat.modified < before for stat in objects) and _lost_its_number(store, table, batch):
            folder = plan_key(table, batch).rpartition("/")[0]
            yield Leftovers("plan", folder, objects, "another planner took its number")


def _lost_its_number(store: ObjectStore, table: str, batch: str) -> bool:
    """Whether another batch has the number in the id of this one, so that it can never be committed.

    While the number is free, a planner that was suspended can still take it.
    """
    number = int(batch.partition("-")[0])
    try:
        holder = NumberedBatch.model_validate_json(store.read(number_key(table, number)))
    except ObjectNotFound:
        return False
    return holder.batch != batch
