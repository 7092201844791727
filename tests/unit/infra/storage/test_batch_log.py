"""A table's log holds each batch exactly once and in order, no matter how many processes write to it."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import RequestError
from infra.storage.batch_log import LoggedBatch, append_batch, committed_batches, mark_committed, read_batch_log
from infra.storage.object_store import ObjectStore, SwapConflict, open_store
from infra.storage.prediction_table import BatchManifest, BatchPlan, ShardBooks, commit


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def batch(name: str, model_version: str = "1") -> LoggedBatch:
    return LoggedBatch(batch=name, model_version=model_version, options={"invert": "never"})


def append(store: ObjectStore, name: str, table: str = "t") -> None:
    append_batch(store, read_batch_log(store, table), batch(name))


def append_until_done(store: ObjectStore, name: str) -> int:
    """Append to the log, and read it again after each conflict. Return the number of conflicts."""
    for conflicts in range(1000):
        try:
            append(store, name)
        except SwapConflict:
            continue
        return conflicts
    raise AssertionError(f"{name} was never appended")


def names(store: ObjectStore) -> list[str]:
    return [entry.batch for entry in read_batch_log(store, "t").batches]


def committed(store: ObjectStore) -> set[str]:
    return {entry.batch for entry in read_batch_log(store, "t").batches if entry.committed}


def write_manifest(store: ObjectStore, name: str) -> BatchManifest:
    plan = BatchPlan(table="t", batch=name, model_version="1", options={}, shards=1, planned=2)
    return commit(store, plan, [ShardBooks(0, 2, 1, 1)], model={}, seconds=1)


def test_table_without_batches_has_an_empty_log(store: ObjectStore):
    log = read_batch_log(store, "t")
    assert (log.table, log.batches, log.etag) == ("t", [], None)


def test_batches_are_in_the_order_of_appending(store: ObjectStore):
    for name in ("b", "c", "a"):
        append(store, name)
    assert names(store) == ["b", "c", "a"]


def test_batch_reads_back_as_it_was_appended(store: ObjectStore):
    entry = LoggedBatch(batch="a", model_version="12", options={"invert": "auto", "image_column": None})
    append_batch(store, read_batch_log(store, "t"), entry)
    assert read_batch_log(store, "t").batches == [entry]


def test_appended_batch_is_not_committed(store: ObjectStore):
    append(store, "a")
    assert committed(store) == set()


def test_each_table_has_its_own_log(store: ObjectStore):
    append(store, "a", table="t")
    append(store, "b", table="u")
    assert names(store) == ["a"]


def test_log_selects_the_batches_of_one_model(store: ObjectStore):
    for name, version in (("a", "1"), ("b", "10"), ("c", "1")):
        append_batch(store, read_batch_log(store, "t"), batch(name, version))
    assert [entry.batch for entry in read_batch_log(store, "t").of_model("1")] == ["a", "c"]


@pytest.mark.parametrize("table", ["", "../up", "a/b", ".hidden", "a b"])
def test_malformed_table_name_is_refused(store: ObjectStore, table: str):
    with pytest.raises(RequestError, match=re.escape(repr(table))):
        read_batch_log(store, table)


# Concurrent writers


def test_append_to_a_changed_log_is_a_conflict(store: ObjectStore):
    append(store, "a")
    seen = read_batch_log(store, "t")
    append(store, "b")
    with pytest.raises(SwapConflict):
        append_batch(store, seen, batch("c"))


def test_append_with_a_conflict_changes_nothing(store: ObjectStore):
    seen = read_batch_log(store, "t")
    append(store, "a")
    with pytest.raises(SwapConflict):
        append_batch(store, seen, batch("b"))
    assert names(store) == ["a"]


def test_append_to_a_log_with_a_new_mark_is_a_conflict(store: ObjectStore):
    append(store, "a")
    seen = read_batch_log(store, "t")
    mark_committed(store, "t", {"a"})
    with pytest.raises(SwapConflict):
        append_batch(store, seen, batch("b"))


@pytest.mark.parametrize("before", [[], ["earlier"]], ids=["new log", "log with a batch"])
def test_one_of_many_concurrent_appends_wins_and_the_others_conflict(store: ObjectStore, before: list[str]):
    for name in before:
        append(store, name)
    seen = read_batch_log(store, "t")
    together = threading.Barrier(8)

    def win(number: int) -> bool:
        together.wait()
        try:
            append_batch(store, seen, batch(f"{number}"))
        except SwapConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(win, range(8)))
    assert [f"{number}" for number in range(8) if won[number]] == names(store)[len(before) :]
    assert sum(won) == 1


def test_appends_repeated_after_conflicts_are_in_the_log_once(store: ObjectStore):
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda number: append_until_done(store, f"{number}"), range(24)))
    assert sorted(names(store), key=int) == [f"{number}" for number in range(24)]


# Marks


def test_only_named_batches_are_marked(store: ObjectStore):
    for name in "abcd":
        append(store, name)
    mark_committed(store, "t", {"b", "d"})
    assert committed(store) == {"b", "d"}


def test_mark_survives_later_marks(store: ObjectStore):
    for name in "ab":
        append(store, name)
    mark_committed(store, "t", {"a"})
    mark_committed(store, "t", {"b"})
    assert committed(store) == {"a", "b"}


def test_mark_changes_nothing_else(store: ObjectStore):
    for name in "ab":
        append(store, name)
    before = read_batch_log(store, "t").batches
    mark_committed(store, "t", {"b"})
    assert read_batch_log(store, "t").batches == [before[0], before[1].model_copy(update={"committed": True})]


@pytest.mark.parametrize("marked", [{"a"}, {"unknown"}, set()], ids=["again", "unknown", "none"])
def test_log_is_not_written_if_no_mark_is_new(store: ObjectStore, marked: set[str]):
    append(store, "a")
    mark_committed(store, "t", {"a"})
    before = store.stat("predictions/t/_batches.json")
    mark_committed(store, "t", marked)
    assert store.stat("predictions/t/_batches.json") == before


def test_concurrent_marks_and_appends_lose_none(store: ObjectStore):
    for number in range(6):
        append(store, f"{number}")
    together = threading.Barrier(6)

    def mark_and_append(number: int) -> None:
        together.wait()
        mark_committed(store, "t", {f"{number}"})
        append_until_done(store, f"new {number}")

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(mark_and_append, range(6)))
    assert committed(store) == {f"{number}" for number in range(6)}
    assert sorted(names(store)) == sorted(f"{prefix}{number}" for prefix in ("", "new ") for number in range(6))


# Committed batches


def test_batches_with_a_manifest_are_committed_in_the_order_of_the_log(store: ObjectStore):
    for name in "dcba":
        append(store, name)
    manifests = [write_manifest(store, name) for name in "bd"]
    assert committed_batches(store, "t") == manifests[::-1]


def test_unmarked_batch_with_a_manifest_is_committed(store: ObjectStore):
    append(store, "a")
    assert [committed_batches(store, "t"), committed(store)] == [[], set()]
    manifest = write_manifest(store, "a")
    assert [committed_batches(store, "t"), committed(store)] == [[manifest], set()]


def test_missing_table_has_no_committed_batches(store: ObjectStore):
    assert committed_batches(store, "t") == []
