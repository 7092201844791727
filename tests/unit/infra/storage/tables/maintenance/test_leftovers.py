"""Pruning removes what committed batches have left, and nothing that a snapshot or an unfinished batch needs."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from infra.storage.keys import plan_key, quarantine_folder, record_key, records_folder, table_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.retention import Pruned, prune
from infra.storage.tables.delta import open_delta
from infra.storage.tables.maintenance.compact import compact
from infra.storage.tables.maintenance.leftovers import fence
from infra.storage.tables.parts import PartFile
from infra.storage.tables.planning.plan import BatchPlan, find_plan
from tests.unit.infra.storage.tables.committed_tables import (
    SCHEMAS,
    TABLE,
    commit,
    commit_planned,
    finish_shard,
    images,
    opened,
    parts,
    plan_batch,
    rows,
    uris,
    write_predictions,
    write_quarantine,
)

PREDICTIONS, QUARANTINE = table_folder(TABLE), quarantine_folder(TABLE)
AT_ONCE = timedelta(minutes=-1)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def age(tmp_path: Path) -> Callable[[], None]:
    """Make all files two days older."""

    def make_older() -> None:
        for path in (tmp_path / "store").rglob("*"):
            if path.is_file():
                then = path.stat().st_mtime - 2 * 24 * 3600
                os.utime(path, (then, then))

    return make_older


def prune_at_once(store: ObjectStore, *, dry_run: bool = False) -> Pruned:
    return prune(store, older_than=AT_ONCE, dry_run=dry_run)


def plan_of(store: ObjectStore, batch: str) -> BatchPlan:
    plan = find_plan(store, TABLE, batch)
    assert plan is not None
    return plan


def is_there(store: ObjectStore, folder: str, part: PartFile) -> bool:
    return store.stat(f"{folder}/{part.name}") is not None


def test_parts_of_slower_attempts_go_once_their_batch_is_committed(store: ObjectStore) -> None:
    plan = plan_of(store, commit(store, 1, images(1), images(2)).batch)
    late, late_quarantine = write_predictions(store, plan, images(1)), write_quarantine(store, plan, images(2))

    pruned = prune_at_once(store)

    assert sum(removal.objects for removal in pruned.removed if removal.kind == "parts") == 2
    assert not is_there(store, PREDICTIONS, late)
    assert not is_there(store, QUARANTINE, late_quarantine)
    assert (uris(store), uris(store, QUARANTINE)) == (images(1), images(2))


def test_unfinished_batch_keeps_everything(store: ObjectStore) -> None:
    commit(store, 1, images(1))
    plan = plan_batch(store, 2, images(2, 3))
    record = finish_shard(store, plan, images(2), images(3))
    slower = write_predictions(store, plan, images(2))

    prune_at_once(store)

    assert is_there(store, PREDICTIONS, slower)
    commit_planned(store, plan, record)
    assert (uris(store), uris(store, QUARANTINE)) == (images(1, 2), images(3))


def test_replaced_parts_stay_while_time_travel_needs_them(store: ObjectStore, age: Callable[[], None]) -> None:
    for number in range(1, 4):
        commit(store, number, images(number))
    age()
    version = opened(store, PREDICTIONS).table.version()
    compact(store, TABLE, SCHEMAS)

    prune(store, older_than=timedelta(hours=24))

    before = open_delta(store, PREDICTIONS)
    assert before is not None
    before.table.load_as_version(version)
    assert len(before.dataset().to_table()) == 3
    age()
    pruned = prune(store, older_than=timedelta(hours=24))
    assert sum(removal.objects for removal in pruned.removed if removal.kind == "parts") == 3
    assert uris(store) == images(1, 2, 3)


def test_dry_run_finds_the_same_and_changes_nothing(store: ObjectStore) -> None:
    for number in range(1, 4):
        commit(store, number, images(number))
    compact(store, TABLE, SCHEMAS)
    before = [(stat.key, stat.etag) for stat in store.list("")]

    would = prune_at_once(store, dry_run=True)

    assert [(stat.key, stat.etag) for stat in store.list("")] == before
    assert {(r.kind, r.uri) for r in prune_at_once(store).removed} == {(r.kind, r.uri) for r in would.removed}
    assert prune_at_once(store).removed == []


def test_compaction_in_progress_loses_no_part_to_pruning(store: ObjectStore) -> None:
    books = commit(store, 1, images(1))
    plan = plan_of(store, books.batch)
    snapshot = opened(store, PREDICTIONS)
    written = write_predictions(store, plan, images(1))

    prune_at_once(store)

    assert not snapshot.replace(books.batch, parts(store), [written], data_change=False)
    assert uris(store) == images(1)


def test_pruning_in_progress_removes_no_part_that_a_later_compaction_commits(store: ObjectStore) -> None:
    books = commit(store, 1, images(1))
    fence(store, PREDICTIONS)
    snapshot = opened(store, PREDICTIONS)
    written = write_predictions(store, plan_of(store, books.batch), images(1))

    assert snapshot.replace(books.batch, parts(store), [written], data_change=False)
    prune_at_once(store)

    assert uris(store) == images(1)


def test_records_of_committed_batches_go(store: ObjectStore) -> None:
    books = commit(store, 1, images(1))
    plan = plan_batch(store, 2, images(2))
    finish_shard(store, plan, images(2), [])

    prune_at_once(store)

    assert list(store.list(f"{records_folder(TABLE, books.batch)}/")) == []
    assert store.stat(plan_key(TABLE, books.batch)) is not None
    assert store.stat(record_key(TABLE, plan.batch, 0, 0)) is not None


def test_late_worker_of_a_pruned_batch_changes_nothing(store: ObjectStore) -> None:
    books = commit(store, 1, images(1))
    plan = plan_of(store, books.batch)
    prune_at_once(store)
    before = rows(store)

    record = finish_shard(store, plan, [], images(1))  # its input is gone by now
    commit_planned(store, plan, record)

    assert rows(store) == before
    assert open_delta(store, QUARANTINE) is None or uris(store, QUARANTINE) == []
    assert {removal.kind for removal in prune_at_once(store).removed} == {"parts", "records"}


def test_plan_that_lost_its_number_goes(store: ObjectStore) -> None:
    commit(store, 1, images(1))
    lost = plan_without_number(store, 1, images(5))
    waiting = plan_without_number(store, 2, images(6))

    pruned = prune_at_once(store)

    assert [removal.uri.rpartition("/")[2] for removal in pruned.removed if removal.kind == "plan"] == [lost.batch]
    assert find_plan(store, TABLE, lost.batch) is None
    assert find_plan(store, TABLE, waiting.batch) is not None


def test_recent_files_stay(store: ObjectStore) -> None:
    books = commit(store, 1, images(1))
    late = write_predictions(store, plan_of(store, books.batch), images(1))
    lost = plan_without_number(store, 1, images(5))
    time.sleep(0.01)

    assert prune(store, older_than=timedelta(hours=1)).removed == []

    assert is_there(store, PREDICTIONS, late)
    assert find_plan(store, TABLE, lost.batch) is not None


def plan_without_number(store: ObjectStore, number: int, planned: list[str]) -> BatchPlan:
    """Write a plan like a planner that is killed before it takes a number."""
    plan = plan_batch(store, number + 1000, planned)
    found = plan.model_copy(
        update={"batch": plan.batch.replace(f"{number + 1000:08d}", f"{number:08d}"), "number": number}
    )
    with store.publish(plan_key(TABLE, found.batch)) as stream:
        stream.write(store.read(plan_key(TABLE, plan.batch)))
    for key in (plan_key(TABLE, plan.batch), f"work/{TABLE}/batches/{number + 1000:08d}.json"):
        store.delete(key)
    return found
