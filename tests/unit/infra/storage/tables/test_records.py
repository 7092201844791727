"""The first record of a shard counts, and parts that are missing or damaged are found."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.storage.keys import quarantine_folder, record_key, table_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.records import (
    OTHER_REASONS,
    ConfusionCell,
    LeastConfident,
    PredictionSummary,
    Reason,
    ShardRecord,
    create_record,
    damaged_shards,
    read_record,
    read_records,
    summed_reasons,
)
from tests.unit.infra.storage.tables.finished_shards import finish_batch, finish_shard, images, plan_of_shards

PLAN = plan_of_shards()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def path_of(store: ObjectStore, key: str) -> Path:
    return Path(store.uri(key).removeprefix("file://"))


def test_record_is_read_back_unchanged(store: ObjectStore) -> None:
    record = ShardRecord(
        shard=1,
        planned=3,
        predicted=2,
        quarantined=1,
        seconds=0.1,
        reasons=[Reason(kind="damaged", reason="damaged: ä", images=1, example="file:///x.png")],
        summary=PredictionSummary(
            class_counts=[2], confidence_sums=[1.1], confusion=[ConfusionCell(label=1, predicted=0, images=2)]
        ),
        least_confident=[LeastConfident(image="a", confidence=0.1, probabilities=[0.1, 0.9], label=None)],
    )
    create_record(store, PLAN, record)
    assert read_record(store, PLAN, 1, 0) == record


def test_shard_without_a_record_has_none(store: ObjectStore) -> None:
    assert read_record(store, PLAN, 1, 0) is None
    assert read_records(store, PLAN) == {}


def test_first_record_wins(store: ObjectStore) -> None:
    first = finish_shard(store, PLAN, 0, predicted=images(2), quarantined=[])
    second = finish_shard(store, PLAN, 0, predicted=images(1), quarantined=images(1, first=1))
    assert second == first == read_record(store, PLAN, 0, 0)


def test_own_record_counts_if_the_answer_to_its_request_was_lost(store: ObjectStore) -> None:
    record = ShardRecord(shard=0, planned=0, predicted=0, quarantined=0, seconds=1 / 3)
    store.create(record_key(PLAN.table, PLAN.batch, 0, 0), record.model_dump_json().encode())
    assert create_record(store, PLAN, record) is record


def test_newest_successor_counts(store: ObjectStore) -> None:
    for number in (0, 1, 10, 2):
        finish_shard(store, PLAN, 0, predicted=images(2), quarantined=[], number=number)
    assert {shard: record.number for shard, record in read_records(store, PLAN).items()} == {0: 10}


def test_other_objects_are_no_records(store: ObjectStore) -> None:
    for name in ("notes.txt", "00001-0.json.tmp", "1-0.json", "00007-0.json"):
        store.create(f"work/t/{PLAN.batch}/shards/{name}", b"")
    assert read_records(store, PLAN) == {}


def test_intact_parts_are_not_reported(store: ObjectStore) -> None:
    assert damaged_shards(store, PLAN, finish_batch(store, PLAN).values()) == {}


@pytest.mark.parametrize("quarantine", [False, True], ids=["predictions", "quarantine"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "other bytes"])
def test_shard_with_a_bad_part_is_reported(store: ObjectStore, damage: str, quarantine: bool) -> None:
    records = finish_batch(store, PLAN)
    folder = quarantine_folder("t") if quarantine else table_folder("t")
    [part] = records[1].quarantine if quarantine else records[1].parts
    path = path_of(store, f"{folder}/{part.name}")
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "truncated" else data[:30] + b"\xff\xfe" + data[32:])
    assert damaged_shards(store, PLAN, records.values()) == {1: f"{folder}/{part.name}"}


def test_shard_without_parts_is_not_damaged(store: ObjectStore) -> None:
    record = ShardRecord(shard=0, planned=0, predicted=0, quarantined=0)
    assert damaged_shards(store, PLAN, [record]) == {}


# Sums


def reason(kind: str, text: str, count: int) -> Reason:
    return Reason(kind=kind, reason=text, images=count, example=text)


def test_equal_reasons_are_added_up_and_the_most_frequent_comes_first() -> None:
    found = summed_reasons([reason("a", "x", 2), reason("b", "y", 4), reason("a", "x", 3)], 10)
    assert found == [reason("a", "x", 5), reason("b", "y", 4)]


def test_rare_reasons_are_summed_up_by_kind() -> None:
    found = summed_reasons([reason("a", "x", 9), reason("a", "y", 1), reason("b", "z", 1), reason("a", "w", 2)], 1)
    assert [(entry.kind, entry.reason, entry.images) for entry in found] == [
        ("a", "x", 9),
        ("a", OTHER_REASONS, 3),
        ("b", OTHER_REASONS, 1),
    ]


REASONS = st.builds(reason, st.sampled_from("ab"), st.sampled_from(["x", "y", "z", OTHER_REASONS]), st.integers(1, 9))


@given(shards=st.lists(st.lists(REASONS, max_size=9), max_size=4), limit=st.integers(0, 4))
def test_sum_of_reasons_loses_no_image_of_any_kind(shards: list[list[Reason]], limit: int) -> None:
    of_shards = [entry for reasons in shards for entry in summed_reasons(reasons, limit)]
    found = summed_reasons(of_shards, limit)
    for kind in "ab":
        expected = sum(entry.images for reasons in shards for entry in reasons if entry.kind == kind)
        assert sum(entry.images for entry in found if entry.kind == kind) == expected
    assert sum(entry.reason != OTHER_REASONS for entry in found) <= limit


def test_summaries_of_different_widths_are_added_up() -> None:
    total = PredictionSummary.total(
        [
            PredictionSummary(),
            PredictionSummary(class_counts=[1], confusion=[ConfusionCell(label=3, predicted=0, images=1)]),
            PredictionSummary(
                class_counts=[2, 3],
                confidence_sums=[0.5, 1],
                confusion=[
                    ConfusionCell(label=3, predicted=0, images=2),
                    ConfusionCell(label=0, predicted=1, images=3),
                ],
            ),
        ]
    )
    assert (total.class_counts, total.confidence_sums, total.confidence_histogram) == ([3, 3], [0.5, 1], [])
    assert [(cell.label, cell.predicted, cell.images) for cell in total.confusion] == [(0, 1, 3), (3, 0, 3)]
