"""A table's batches are in its log exactly once and in order, however many processes write to it."""

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
    """Append to the log, read anew as often as another is first; how often that was."""
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


def test_batches_are_in_the_order_in_which_they_were_appended(store: ObjectStore):
    for name in ("b", "c", "a"):
        append(store, name)
    assert names(store) == ["b", "c", "a"]


def test_batch_reads_back_as_it_was_appended(store: ObjectStore):
    entry = LoggedBatch(batch="a", model_version="12", options={"invert": "auto", "image_column": None})
    append_batch(store, read_batch_log(store, "t"), entry)
    assert read_batch_log(store, "t").batches == [entry]


def test_batch_is_not_committed_when_it_is_appended(store: ObjectStore):
    append(store, "a")
    assert committed(store) == set()


def test_tables_have_logs_of_their_own(store: ObjectStore):
    append(store, "a", table="t")
    append(store, "b", table="u")
    assert names(store) == ["a"]


def test_log_tells_the_batches_of_one_model(store: ObjectStore):
    for name, version in (("a", "1"), ("b", "10"), ("c", "1")):
        append_batch(store, read_batch_log(store, "t"), batch(name, version))
    assert [entry.batch for entry in read_batch_log(store, "t").of_model("1")] == ["a", "c"]


@pytest.mark.parametrize("table", ["", "../up", "a/b", ".hidden", "a b"])
def test_table_of_no_possible_name_is_refused(store: ObjectStore, table: str):
    with pytest.raises(RequestError, match="table name"):
        read_batch_log(store, table)


# Several writers


def test_append_to_a_log_that_was_changed_since_is_a_conflict(store: ObjectStore):
    append(store, "a")
    seen = read_batch_log(store, "t")
    append(store, "b")
    with pytest.raises(SwapConflict):
        append_batch(store, seen, batch("c"))


def test_append_that_was_a_conflict_changes_nothing(store: ObjectStore):
    seen = read_batch_log(store, "t")
    append(store, "a")
    with pytest.raises(SwapConflict):
        append_batch(store, seen, batch("b"))
    assert names(store) == ["a"]


def test_append_to_a_log_in_which_a_batch_was_marked_since_is_a_conflict(store: ObjectStore):
    append(store, "a")
    seen = read_batch_log(store, "t")
    mark_committed(store, "t", {"a"})
    with pytest.raises(SwapConflict):
        append_batch(store, seen, batch("b"))


@pytest.mark.parametrize("before", [[], ["earlier"]], ids=["new log", "log with a batch"])
def test_of_many_who_append_to_the_same_log_one_wins_and_the_others_know(store: ObjectStore, before: list[str]):
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


def test_all_who_append_again_after_a_conflict_are_in_the_log_once(store: ObjectStore):
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda number: append_until_done(store, f"{number}"), range(24)))
    assert sorted(names(store), key=int) == [f"{number}" for number in range(24)]


# Marks


def test_batches_that_are_named_are_marked_and_no_others(store: ObjectStore):
    for name in "abcd":
        append(store, name)
    mark_committed(store, "t", {"b", "d"})
    assert committed(store) == {"b", "d"}


def test_mark_stays_when_others_are_set(store: ObjectStore):
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
def test_log_is_not_written_where_no_mark_is_new(store: ObjectStore, marked: set[str]):
    append(store, "a")
    mark_committed(store, "t", {"a"})
    before = store.stat("predictions/t/_batches.json")
    mark_committed(store, "t", marked)
    assert store.stat("predictions/t/_batches.json") == before


def test_marks_are_all_set_though_many_set_them_and_append_at_once(store: ObjectStore):
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


def test_committed_batches_are_those_with_a_manifest_in_the_order_of_the_log(store: ObjectStore):
    for name in "dcba":
        append(store, name)
    manifests = [write_manifest(store, name) for name in "bd"]
    assert committed_batches(store, "t") == manifests[::-1]


def test_batch_that_is_committed_and_not_marked_is_committed(store: ObjectStore):
    append(store, "a")
    assert [committed_batches(store, "t"), committed(store)] == [[], set()]
    manifest = write_manifest(store, "a")
    assert [committed_batches(store, "t"), committed(store)] == [[manifest], set()]


def test_table_that_is_not_there_has_no_committed_batches(store: ObjectStore):
    assert committed_batches(store, "t") == []
