"""A table's catalog names each batch exactly once and in order, no matter how many planners take numbers."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.errors import JobStopped, RequestError
from infra.storage.keys import number_key
from infra.storage.object_store import ObjectStat, ObjectStore, open_store
from infra.storage.tables.planning import batches as batches_module
from infra.storage.tables.planning.batches import (
    NumberedBatch,
    NumberTaken,
    list_batches,
    read_catalog,
    take_number,
    unfinished_batches,
)
from infra.storage.tables.planning.index_compaction import compact_index
from tests.unit.infra.storage.tables.numbered_batches import OPTIONS, add_batch, add_batches, commit_batches


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def entry(number: int, name: str = "", model_version: str = "1") -> NumberedBatch:
    return NumberedBatch(number=number, batch=name or f"b{number}", model_version=model_version, options=OPTIONS)


def take(store: ObjectStore, *numbers: int) -> None:
    for number in numbers:
        take_number(store, "t", entry(number))


def take_next(store: ObjectStore, name: str) -> int:
    """Take the next number, and read the catalog again after each conflict. Return the number."""
    while True:
        number = read_catalog(store, "t").next_number
        try:
            take_number(store, "t", entry(number, name))
        except NumberTaken:
            continue
        return number


def hide(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Make listings lag: they don't show some batches yet."""
    listed, hidden = store.list, {number_key("t", number) for number in numbers}

    def lagging(prefix: str, *, after: str = "") -> Iterator[ObjectStat]:
        return (stat for stat in listed(prefix, after=after) if stat.key not in hidden)

    monkeypatch.setattr(store, "list", lagging)


def test_table_without_batches_has_an_empty_catalog(store: ObjectStore):
    catalog = read_catalog(store, "t")
    assert (catalog.next_number, catalog.segments, catalog.tail, catalog.options) == (1, [], [], {})


def test_batches_come_in_the_order_of_their_numbers(store: ObjectStore):
    take(store, *range(1, 13))
    assert read_catalog(store, "t").tail == list_batches(store, "t") == [entry(number) for number in range(1, 13)]


def test_next_number_follows_the_last_batch(store: ObjectStore):
    take(store, 1, 2, 3)
    assert read_catalog(store, "t").next_number == 4


def test_each_table_has_its_own_numbers(store: ObjectStore):
    take(store, 1)
    assert read_catalog(store, "u").next_number == 1


def test_options_are_known_by_model_version(store: ObjectStore):
    take(store, 1)
    other = NumberedBatch(number=2, batch="x", model_version="2", options={"invert": "auto"})
    take_number(store, "t", other)
    assert read_catalog(store, "t").options == {"1": OPTIONS, "2": {"invert": "auto"}}


@pytest.mark.parametrize("table", ["", "../up", "a/b", ".hidden", "a b"])
def test_malformed_table_name_is_refused(store: ObjectStore, table: str):
    with pytest.raises(RequestError, match=re.escape(repr(table))):
        read_catalog(store, table)


# Concurrent planners


def test_number_is_given_only_once(store: ObjectStore):
    take(store, 1)
    with pytest.raises(NumberTaken):
        take_number(store, "t", entry(1, "other"))
    assert list_batches(store, "t") == [entry(1)]


@pytest.mark.parametrize("before", [0, 1], ids=["new table", "table with a batch"])
def test_one_of_many_planners_gets_a_number(store: ObjectStore, before: int):
    take(store, *range(1, before + 1))
    together = threading.Barrier(8)

    def wins(number: int) -> bool:
        together.wait()
        try:
            take_number(store, "t", entry(before + 1, f"{number}"))
        except NumberTaken:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(wins, range(8)))
    assert [f"{number}" for number in range(8) if won[number]] == [read_catalog(store, "t").tail[-1].batch]


def test_planners_that_try_again_all_get_a_number(store: ObjectStore):
    with ThreadPoolExecutor(6) as threads:
        numbers = list(threads.map(lambda number: take_next(store, f"{number}"), range(24)))
    assert sorted(numbers) == list(range(1, 25))
    assert sorted(int(found.batch) for found in list_batches(store, "t")) == list(range(24))


# Listings that lag, and objects that got lost


@pytest.mark.parametrize("hidden", [(3,), (1,), (2, 3), (1, 2, 3)], ids=str)
def test_lagging_listing_hides_no_batch(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, hidden: tuple[int, ...]):
    take(store, 1, 2, 3)
    hide(store, monkeypatch, *hidden)
    assert [found.number for found in read_catalog(store, "t").tail] == [1, 2, 3]


def test_missing_batch_in_the_middle_is_named(store: ObjectStore):
    take(store, 1, 2, 3)
    store.delete(number_key("t", 2))
    with pytest.raises(JobStopped) as error:
        read_catalog(store, "t")
    assert number_key("t", 2) in str(error.value)


def test_missing_work_folder_of_a_table_with_batches_is_named(store: ObjectStore, tmp_path: Path):
    commit_batches(store, add_batches(store, [1], tmp_path))
    store.delete(number_key("t", 1))
    with pytest.raises(JobStopped) as error:
        read_catalog(store, "t")
    assert "work/t" in str(error.value)


def test_batch_of_the_table_that_the_work_folder_lacks_is_named(store: ObjectStore, tmp_path: Path):
    """The backup of work/t is older than that of predictions/t."""
    commit_batches(store, add_batches(store, [1, 2, 3], tmp_path), rows=True)
    store.delete(number_key("t", 3))
    with pytest.raises(JobStopped) as error:
        read_catalog(store, "t")
    assert all(words in str(error.value) for words in ("work/t", "number 3"))


def test_batch_committed_while_the_catalog_is_read_is_found(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit_batches(store, add_batches(store, [1], tmp_path), rows=True)
    open_delta = batches_module.open_delta

    def commit_before(*arguments: Any) -> Any:
        commit_batches(store, add_batches(store, [2], tmp_path), rows=True)
        return open_delta(*arguments)

    monkeypatch.setattr(batches_module, "open_delta", commit_before)
    catalog = read_catalog(store, "t")
    assert (catalog.next_number, catalog.unfinished) == (3, [])


# Unfinished batches


@pytest.mark.parametrize("rows", [False, True], ids=["without rows", "with rows"])
def test_batches_are_unfinished_until_they_are_committed(store: ObjectStore, tmp_path: Path, rows: bool):
    first, second = add_batches(store, [1, 2], tmp_path)
    assert unfinished_batches(store, "t") == [first, second]
    commit_batches(store, [first], rows=rows)
    assert unfinished_batches(store, "t") == [second]


def test_unfinished_batches_are_known_from_the_index(store: ObjectStore, tmp_path: Path):
    batches = add_batches(store, range(1, 21), tmp_path)
    commit_batches(store, [found for found in batches if found.number not in (3, 18)])
    compact_index(store, read_catalog(store, "t"), tmp_path)
    assert read_catalog(store, "t").segments
    assert [found.number for found in unfinished_batches(store, "t")] == [3, 18]


def test_batch_committed_after_compaction_is_finished(store: ObjectStore, tmp_path: Path):
    batches = add_batches(store, range(1, 17), tmp_path)
    compact_index(store, read_catalog(store, "t"), tmp_path)
    commit_batches(store, batches)
    assert unfinished_batches(store, "t") == []


def test_committed_batches_of_the_index_are_not_read(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit_batches(store, add_batches(store, range(1, 20), tmp_path))
    compact_index(store, read_catalog(store, "t"), tmp_path)
    read, keys = store.read, []

    def recorded(key: str) -> bytes:
        keys.append(key)
        return read(key)

    monkeypatch.setattr(store, "read", recorded)
    assert read_catalog(store, "t").next_number == 20
    assert sorted(keys) == [number_key("t", number) for number in range(17, 21)]


def test_batches_missing_from_a_restored_table_are_unfinished(store: ObjectStore, tmp_path: Path):
    """The backup of predictions/t is older than that of work/t."""
    batches = add_batches(store, range(1, 17), tmp_path)
    commit_batches(store, batches[:4])
    backup = _files_below(tmp_path / "store/predictions")
    commit_batches(store, batches[4:])
    compact_index(store, read_catalog(store, "t"), tmp_path)
    assert unfinished_batches(store, "t") == []
    for path in set(_files_below(tmp_path / "store/predictions")) - set(backup):
        path.unlink()
    assert unfinished_batches(store, "t") == batches[4:]


def test_restored_table_that_grows_keeps_its_unfinished_batches(store: ObjectStore, tmp_path: Path):
    batches = add_batches(store, range(1, 17), tmp_path)
    commit_batches(store, batches[:4])
    backup = _files_below(tmp_path / "store/predictions")
    commit_batches(store, batches[4:])
    compact_index(store, read_catalog(store, "t"), tmp_path)
    for path in set(_files_below(tmp_path / "store/predictions")) - set(backup):
        path.unlink()
    compact_index(store, read_catalog(store, "t"), tmp_path)  # what the next planner does
    for found in [add_batch(store, number, [("file:///new", "1", 1)], tmp_path) for number in (17, 18)]:
        commit_batches(store, [found])
    assert unfinished_batches(store, "t") == batches[4:]


def _files_below(folder: Path) -> dict[Path, Any]:
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
