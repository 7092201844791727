"""A part is whole or absent and holds its books. A batch is committed only if its books balance."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.storage import prediction_table
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.prediction_table import (
    BatchPlan,
    BooksDontBalance,
    ShardBooks,
    commit,
    errors_key,
    existing_parts,
    open_part,
    part_key,
    read_books,
    read_manifest,
    read_rows,
)

SCHEMA = pa.schema([pa.field("image", pa.string()), pa.field("label", pa.int8())])
PLAN = BatchPlan(table="t", batch="b", model_version="1", options={}, shards=3, planned=6)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def rows(count: int, first: int = 0) -> pa.RecordBatch:
    numbers = range(first, first + count)
    return pa.record_batch([[f"{number}" for number in numbers], [number % 10 for number in numbers]], schema=SCHEMA)


def write(store: ObjectStore, key: str, batches: list[pa.RecordBatch], books: ShardBooks | None = None) -> None:
    with open_part(store, key, SCHEMA) as part:
        for batch in batches:
            part.write(batch)
        if books:
            part.note(books)


def read(store: ObjectStore, key: str) -> tuple[pa.Table, list[int]]:
    """Read a part's rows and the sizes of its row groups."""
    filesystem, path = store.arrow(key)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        return file.read(), groups


# Parts


@settings(deadline=None, print_blob=True, max_examples=30)
@given(sizes=st.lists(st.integers(0, 25), max_size=8))
def test_row_groups_are_full_for_any_sizes_of_batches(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]):
    store = open_store(f"file://{tmp_path_factory.mktemp('parts')}/store")
    batches = [rows(size, first=sum(sizes[:number])) for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prediction_table, "ROW_GROUP", 10)
        write(store, "part.parquet", batches)
    found, groups = read(store, "part.parquet")
    assert found.to_pylist() == rows(sum(sizes)).to_pylist()
    assert groups == [10] * (sum(sizes) // 10) + [sum(sizes) % 10] * (sum(sizes) % 10 > 0)


def test_part_counts_its_rows(store: ObjectStore):
    with open_part(store, "part.parquet", SCHEMA) as part:
        part.write(rows(3))
        part.write(rows(0))
        part.write(rows(4))
        assert part.rows == 7


def test_part_without_rows_is_written(store: ObjectStore):
    write(store, "part.parquet", [])
    found, _ = read(store, "part.parquet")
    assert (found.num_rows, found.schema) == (0, SCHEMA)


def test_part_is_absent_until_its_block_ends(store: ObjectStore):
    with open_part(store, "part.parquet", SCHEMA) as part:
        part.write(rows(3))
        assert store.stat("part.parquet") is None
    assert store.stat("part.parquet") is not None


def test_part_is_absent_if_its_block_raises(store: ObjectStore):
    def fail(batches: Iterator[pa.RecordBatch]) -> None:
        with open_part(store, "part.parquet", SCHEMA) as part:
            for batch in batches:
                part.write(batch)
            raise KeyError

    with pytest.raises(KeyError):
        fail(iter([rows(3)]))
    assert list(store.list("")) == []


def test_bytes_of_a_part_do_not_depend_on_how_long_it_took(store: ObjectStore):
    written = []
    for seconds in (1.0, 2.0):
        write(store, "part.parquet", [rows(3)], ShardBooks(0, 4, 3, 1, seconds))
        written.append(store.read("part.parquet"))
    assert written[0] == written[1]


def test_part_has_statistics_that_let_readers_skip_row_groups(store: ObjectStore):
    write(store, "part.parquet", [rows(7)])
    filesystem, path = store.arrow("part.parquet")
    found = pq.read_metadata(path, filesystem=filesystem).row_group(0).column(1).statistics
    assert (found.min, found.max) == (0, 6)


# Books


def test_books_are_read_back_without_their_seconds(store: ObjectStore):
    write(store, part_key(PLAN, 2), [rows(3)], ShardBooks(2, 5, 3, 2, 1.5))
    assert read_books(store, PLAN, 2) == ShardBooks(2, 5, 3, 2, 0.0)


def test_shard_without_a_part_has_no_books(store: ObjectStore):
    assert read_books(store, PLAN, 0) is None


def test_shards_with_a_part_are_listed(store: ObjectStore):
    for shard in (0, 2):
        write(store, part_key(PLAN, shard), [])
    assert sorted(existing_parts(store, PLAN)) == [0, 2]


def test_quarantine_and_other_objects_do_not_count_as_parts(store: ObjectStore):
    write(store, errors_key(PLAN, 1), [])
    for name in ("_plan.parquet", "_manifest.json", "part-1.parquet", "part-00001.parquet.crc", "part-00003.parquet"):
        store.create(f"{PLAN.key}/{name}", b"")
    assert existing_parts(store, PLAN) == []


def test_part_of_a_shard_above_99999_is_listed(store: ObjectStore):
    plan = PLAN.model_copy(update={"shards": 100_001})
    write(store, part_key(plan, 100_000), [])
    assert existing_parts(store, plan) == [100_000]


# Commits


BOOKS = [ShardBooks(0, 3, 3, 0), ShardBooks(1, 1, 0, 1), ShardBooks(2, 2, 1, 1)]


def test_manifest_adds_up_the_books(store: ObjectStore):
    manifest = commit(store, PLAN, BOOKS, model={"version": 1}, seconds=2.0)
    assert (manifest.planned, manifest.predicted, manifest.quarantined) == (6, 4, 2)
    assert manifest.images_per_second == 3.0
    assert read_manifest(store, "t", "b") == manifest


def test_manifest_names_all_parts_and_existing_quarantines(store: ObjectStore):
    manifest = commit(store, PLAN, BOOKS[::-1], model={}, seconds=2.0)
    assert manifest.parts == [part_key(PLAN, shard) for shard in range(3)]
    assert manifest.error_parts == [errors_key(PLAN, shard) for shard in (1, 2)]


@pytest.mark.parametrize(
    ("books", "message"),
    [
        (BOOKS[:2], r"\[2\]"),
        ([*BOOKS[:2], ShardBooks(2, 2, 1, 0)], "shard 2: 1 .* 0 .* 2 "),
        ([*BOOKS[:2], ShardBooks(2, 2, 2, 1)], "shard 2: 2 .* 1 .* 2 "),
        ([*BOOKS[:2], ShardBooks(2, 3, 3, 0)], "7 images.* 6"),
    ],
    ids=["missing", "lost", "twice", "more"],
)
def test_unbalanced_books_are_not_committed(store: ObjectStore, books: list[ShardBooks], message: str):
    with pytest.raises(BooksDontBalance, match=message):
        commit(store, PLAN, books, model={}, seconds=2.0)
    assert read_manifest(store, "t", "b") is None


def test_second_commit_returns_the_first(store: ObjectStore):
    first = commit(store, PLAN, BOOKS, model={}, seconds=2.0)
    assert commit(store, PLAN, BOOKS, model={}, seconds=3.0) == first


def test_rows_of_committed_batches_are_read_together(store: ObjectStore):
    for shard in range(3):
        write(store, part_key(PLAN, shard), [rows(2, first=2 * shard)])
    manifest = commit(store, PLAN, BOOKS, model={}, seconds=2.0)
    assert read_rows(store, [manifest], ["image"]).to_pylist() == rows(6).select(["image"]).to_pylist()
