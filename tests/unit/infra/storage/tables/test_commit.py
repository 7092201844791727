"""A batch is committed exactly once, and only if its books balance and its parts are intact."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore, StoreUnavailable, open_store
from infra.storage.tables import commit as commits
from infra.storage.tables.books import BatchBooks, find_books, read_books, replace_books, write_books
from infra.storage.tables.commit import BooksDontBalance, BooksMissing, PartsDamaged, is_committed
from infra.storage.tables.delta import DeltaSnapshot
from infra.storage.tables.planning.plan import BatchPlan
from infra.storage.tables.records import ShardRecord, read_records
from tests.unit.infra.storage.tables.finished_shards import (
    SCHEMAS,
    commit,
    finish_batch,
    finish_shard,
    images,
    opened,
    plan_of_shards,
    rows_of,
)

PREDICTIONS, QUARANTINE = table_folder("t"), quarantine_folder("t")
PLAN = plan_of_shards()
PREDICTED, QUARANTINED = ["010", "011", "013"], ["012", "014"]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def numbers(store: ObjectStore, folder: str) -> list[str]:
    return [image.removeprefix("file:///").removesuffix(".png") for image in rows_of(store, folder)]


def damage(store: ObjectStore, key: str) -> None:
    """Change one byte of an object."""
    path = Path(store.uri(key).removeprefix("file://"))
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)


# Books


def test_commit_adds_predictions_and_quarantine(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    commit(store, PLAN)
    assert (numbers(store, PREDICTIONS), numbers(store, QUARANTINE)) == (PREDICTED, QUARANTINED)


def test_books_add_up_the_records(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    books = commit(store, PLAN)
    assert (books.planned, books.predicted, books.quarantined, books.shards) == (5, 3, 2, 2)
    assert (books.model_version, books.temperature, books.images_per_second) == ("1", 1.5, 2.5)
    assert [(reason.kind, reason.images) for reason in books.reasons] == [("truncated", 2)]
    assert books.summary.class_counts == [3]
    assert read_books(store, "t") == [books]


def changed(records: dict[int, ShardRecord], **changes: int) -> dict[int, ShardRecord]:
    return records | {1: records[1].model_copy(update=changes)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"predicted": 0}, ["shard 1", "0 predicted", "1 quarantined", "2 planned"]),
        ({"predicted": 2}, ["shard 1", "2 predicted", "1 quarantined", "2 planned"]),
        ({"planned": 3, "predicted": 2}, ["6 images", "5"]),
    ],
    ids=["lost", "twice", "more than planned"],
)
def test_unbalanced_books_are_not_committed(store: ObjectStore, changes: dict[str, int], named: list[str]) -> None:
    records = changed(finish_batch(store, PLAN), **changes)
    with pytest.raises(BooksDontBalance) as error:
        commit(store, PLAN, records)
    assert all(words in str(error.value) for words in [PLAN.batch, *named])
    assert not is_committed(store, "t", PLAN.batch)


def test_batch_with_a_missing_record_is_not_committed(store: ObjectStore) -> None:
    plan = plan_of_shards(shards=10)
    records = finish_batch(store, plan)
    with pytest.raises(BooksDontBalance) as error:
        commit(store, plan, records)
    assert all(words in str(error.value) for words in (plan.batch, "8 shards", "2, 3, 4, 5, 6, …"))
    assert not is_committed(store, "t", plan.batch)


def test_batch_without_predictions_is_committed(store: ObjectStore) -> None:
    plan = plan_of_shards(shards=1, planned=2)
    finish_shard(store, plan, 0, predicted=[], quarantined=images(2))
    books = commit(store, plan)
    assert (books.predicted, books.quarantined) == (0, 2)
    assert is_committed(store, "t", plan.batch)
    assert (rows_of(store, PREDICTIONS), rows_of(store, QUARANTINE)) == ([], images(2))


def test_batch_without_quarantine_is_committed(store: ObjectStore) -> None:
    plan = plan_of_shards(shards=1, planned=2)
    finish_shard(store, plan, 0, predicted=images(2), quarantined=[])
    assert commit(store, plan).reasons == []
    assert (rows_of(store, PREDICTIONS), rows_of(store, QUARANTINE)) == (images(2), [])


def test_rare_reasons_are_summed_up_in_the_books(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_MAX_REASONS", 0)
    finish_batch(store, PLAN)
    books = commit(store, PLAN)
    assert [(reason.kind, reason.images) for reason in books.reasons] == [("truncated", 2)]


# Parts


@pytest.mark.parametrize("folder", [PREDICTIONS, QUARANTINE])
def test_batch_with_a_damaged_part_is_not_committed(store: ObjectStore, folder: str) -> None:
    records = finish_batch(store, PLAN)
    [part] = records[1].parts if folder == PREDICTIONS else records[1].quarantine
    damage(store, f"{folder}/{part.name}")
    with pytest.raises(PartsDamaged) as error:
        commit(store, PLAN)
    assert store.uri(f"{folder}/{part.name}") in str(error.value)
    assert not is_committed(store, "t", PLAN.batch)


def test_batch_with_a_missing_part_is_not_committed(store: ObjectStore) -> None:
    [part] = finish_batch(store, PLAN)[0].parts
    store.delete(f"{PREDICTIONS}/{part.name}")
    with pytest.raises(PartsDamaged):
        commit(store, PLAN)


def test_parts_of_the_attempt_that_came_second_are_invisible(store: ObjectStore) -> None:
    records = finish_batch(store, PLAN)
    loser = finish_shard(store, PLAN, 0, predicted=images(3, first=10), quarantined=[])
    assert loser == records[0]
    commit(store, PLAN)
    assert (numbers(store, PREDICTIONS), numbers(store, QUARANTINE)) == (PREDICTED, QUARANTINED)
    parts = [stat.key for stat in store.list(f"{PREDICTIONS}/_parts/")]
    assert len(parts) == 3


def test_successor_replaces_a_record_with_a_damaged_part(store: ObjectStore) -> None:
    records = finish_batch(store, PLAN)
    damage(store, f"{PREDICTIONS}/{records[0].parts[0].name}")
    finish_shard(store, PLAN, 0, predicted=images(3, first=10), quarantined=[], number=1)
    books = commit(store, PLAN)
    assert (books.predicted, books.quarantined) == (4, 1)
    assert (numbers(store, PREDICTIONS), numbers(store, QUARANTINE)) == (["010", "011", "012", "013"], ["014"])


# Twice, and at once


def test_second_commit_returns_the_first(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    first = commit(store, PLAN)
    assert commit(store, PLAN, seconds=3.0) == first
    assert [opened(store, folder).table.version() for folder in (PREDICTIONS, QUARANTINE, "batches/t")] == [1, 1, 1]


def test_second_commit_does_not_check_the_parts(store: ObjectStore) -> None:
    records = finish_batch(store, PLAN)
    first = commit(store, PLAN)
    damage(store, f"{PREDICTIONS}/{records[0].parts[0].name}")
    assert commit(store, PLAN) == first


def test_batches_have_their_books_in_the_order_of_their_numbers(store: ObjectStore) -> None:
    for number in (2, 1, 3):
        finish_batch(store, plan_of_shards(number))
        commit(store, plan_of_shards(number))
    assert [books.number for books in read_books(store, "t")] == [1, 2, 3]
    assert len(rows_of(store, PREDICTIONS)) == 9


def test_eight_threads_commit_a_batch_once(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    with ThreadPoolExecutor(8) as threads:
        books = list(threads.map(lambda _: commit(store, PLAN), range(8)))
    assert len({entry.model_dump_json() for entry in books}) == 1
    assert (numbers(store, PREDICTIONS), numbers(store, QUARANTINE)) == (PREDICTED, QUARANTINED)
    assert len(read_books(store, "t")) == 1


def commit_number(root: str, number: int) -> str:
    return commit(open_store(root), plan_of_shards(number)).model_dump_json()


def test_four_processes_commit_two_batches_once_each(store: ObjectStore) -> None:
    for number in (1, 2):
        finish_batch(store, plan_of_shards(number))
    with ProcessPoolExecutor(4, get_context("spawn")) as processes:
        found = list(processes.map(commit_number, [store.root] * 4, [1, 2, 1, 2]))
    assert (found[0], found[1]) == (found[2], found[3])
    assert len(rows_of(store, PREDICTIONS)) == 6
    assert [books.number for books in read_books(store, "t")] == [1, 2]


# Killed in between


class Killed(Exception):
    """Stands for the death of the process."""


NEXT: dict[str, tuple[Any, str]] = {
    "quarantine": (commits, "write_books"),
    "books": (DeltaSnapshot, "add"),
    "predictions": (commits, "find_books"),
}
"""What a commit calls after each step."""


def kill_after(step: str, store: ObjectStore, plan: BatchPlan = PLAN) -> None:
    """Commit a batch, and die after a step."""

    def die(*arguments: Any) -> Any:
        if step != "books" or arguments[0]._folder == PREDICTIONS:
            raise Killed
        return add(*arguments)

    add = DeltaSnapshot.add
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(*NEXT[step], die)
        with pytest.raises(Killed):
            commit(store, plan)


@pytest.mark.parametrize("step", NEXT)
def test_commit_that_was_killed_is_completed_by_the_next(store: ObjectStore, step: str) -> None:
    finish_batch(store, PLAN)
    kill_after(step, store)
    assert is_committed(store, "t", PLAN.batch) == (step == "predictions")
    assert len(read_books(store, "t")) == (step == "predictions")
    commit(store, PLAN)
    assert (numbers(store, PREDICTIONS), numbers(store, QUARANTINE)) == (PREDICTED, QUARANTINED)
    assert [(books.predicted, books.quarantined) for books in read_books(store, "t")] == [(3, 2)]


@pytest.mark.parametrize("step", ["quarantine", "books"])
def test_parts_damaged_after_a_kill_are_replaced_everywhere(store: ObjectStore, step: str) -> None:
    finish_batch(store, plan_of_shards(2))
    commit(store, plan_of_shards(2))
    records = finish_batch(store, PLAN)
    kill_after(step, store)
    damage(store, f"{QUARANTINE}/{records[0].quarantine[0].name}")
    with pytest.raises(PartsDamaged):
        commit(store, PLAN)
    # The image can be read now, so the next attempt predicts it.
    finish_shard(store, PLAN, 0, predicted=images(3, first=10), quarantined=[], number=1)
    books = commit(store, PLAN)
    assert (books.predicted, books.quarantined, sum(reason.images for reason in books.reasons)) == (4, 1, 1)
    assert numbers(store, PREDICTIONS) == ["010", "011", "012", "013", "020", "021", "023"]
    assert numbers(store, QUARANTINE) == ["014", "022", "024"]
    assert [(entry.number, entry.predicted) for entry in read_books(store, "t")] == [(1, 4), (2, 3)]


def test_quarantine_is_replaced_next_to_maintenance(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    records = finish_batch(store, PLAN)
    kill_after("quarantine", store)
    damage(store, f"{QUARANTINE}/{records[0].quarantine[0].name}")
    finish_shard(store, PLAN, 0, predicted=images(3, first=10), quarantined=[], number=1)
    replace, lost = DeltaSnapshot.replace, [False]

    def maintained_meanwhile(self: DeltaSnapshot, *arguments: Any, **options: Any) -> bool:
        if not lost[0]:
            lost[0] = True
            assert replace(opened(store, QUARANTINE), PLAN.batch, [], [], data_change=False)
        return replace(self, *arguments, **options)

    monkeypatch.setattr(DeltaSnapshot, "replace", maintained_meanwhile)
    commit(store, PLAN)
    assert lost == [True]
    assert numbers(store, QUARANTINE) == ["014"]


def test_committed_quarantine_is_not_replaced(store: ObjectStore) -> None:
    """A run that is behind has other records, because a part was damaged and restored meanwhile."""
    finish_batch(store, PLAN)
    behind = read_records(store, PLAN)
    finish_shard(store, PLAN, 0, predicted=images(3, first=10), quarantined=[], number=1)
    commit(store, PLAN)
    assert commit(store, PLAN, behind).predicted == 4
    commits._commit_quarantine(store, PLAN, behind, SCHEMAS.quarantine)
    assert numbers(store, QUARANTINE) == ["014"]


# Books of one batch


def books_of(store: ObjectStore) -> BatchBooks:
    found = find_books(store, "t", PLAN.batch)
    assert found is not None
    return found


def test_committed_batch_that_lost_its_books_is_reported(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    commit(store, PLAN)
    for stat in list(store.list("batches/t/")):
        store.delete(stat.key)
    with pytest.raises(BooksMissing) as error:
        commit(store, PLAN)
    assert store.uri("batches/t") in str(error.value)


def test_books_keep_every_field(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    books = commit(store, PLAN)
    changed = books.model_copy(
        update={"batch": "other", "options": {"invert": True, "image_column": None}, "superseded": 7}
    )
    write_books(store, [changed])
    assert find_books(store, "t", "other") == changed


def test_books_of_a_batch_are_written_once(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    books = commit(store, PLAN)
    write_books(store, [books.model_copy(update={"seconds": 9.0})])
    assert read_books(store, "t") == [books]


def test_books_with_other_counts_are_replaced_and_others_stay(store: ObjectStore) -> None:
    for number in (1, 2):
        finish_batch(store, plan_of_shards(number))
        commit(store, plan_of_shards(number))
    changed = books_of(store).model_copy(update={"predicted": 4, "quarantined": 1})
    replace_books(store, changed)
    assert [(entry.number, entry.predicted) for entry in read_books(store, "t")] == [(1, 4), (2, 3)]
    assert books_of(store) == changed


def test_books_in_one_file_with_others_are_replaced_alone(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    books = commit(store, PLAN)
    others = [books.model_copy(update={"batch": f"{number}", "number": number}) for number in (2, 3, 4)]
    write_books(store, others)
    replace_books(store, others[1].model_copy(update={"predicted": 4, "quarantined": 1}))
    rows = sorted(books_of_rows(store))
    assert rows == [(3, 2), (3, 2), (3, 2), (4, 1)]
    assert find_books(store, "t", "2") == others[0]


def test_books_with_equal_counts_are_not_replaced(store: ObjectStore) -> None:
    finish_batch(store, PLAN)
    books = commit(store, PLAN)
    replace_books(store, books.model_copy(update={"seconds": 9.0}))
    assert books_of(store) == books


def test_books_are_not_replaced_if_the_table_changes_meanwhile(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_batch(store, PLAN)
    first = commit(store, PLAN).model_copy(update={"predicted": 4, "quarantined": 1})
    late = opened(store, "batches/t")
    replace_books(store, first)
    monkeypatch.setattr("infra.storage.tables.books.open_delta", lambda *_: late)
    with pytest.raises(StoreUnavailable):
        replace_books(store, first.model_copy(update={"predicted": 5, "quarantined": 0}))
    assert books_of_rows(store) == [(4, 1)]


def books_of_rows(store: ObjectStore) -> list[tuple[int, int]]:
    rows = opened(store, "batches/t").table.to_pyarrow_table().to_pylist()
    return [(row["predicted"], row["quarantined"]) for row in rows]
