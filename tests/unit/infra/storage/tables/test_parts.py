"""A part is whole or absent, and its description is true."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables import parts
from infra.storage.tables.parts import PartFile, is_intact, open_part
from tests.unit.infra.storage.tables.finished_shards import write_part

SCHEMA = pa.schema([pa.field("image", pa.string()), pa.field("label", pa.int16())])
KEY = "folder/part.parquet"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def rows(count: int, first: int = 0) -> pa.RecordBatch:
    numbers = range(first, first + count)
    return pa.record_batch([[f"{number}" for number in numbers], [number % 10 for number in numbers]], schema=SCHEMA)


def write(store: ObjectStore, *batches: pa.RecordBatch, schema: pa.Schema = SCHEMA) -> PartFile:
    with open_part(store, "folder", "part.parquet", schema) as part:
        for batch in batches:
            part.write(batch)
    return part.finished


def read(store: ObjectStore) -> pq.ParquetFile:
    filesystem, path = store.arrow(KEY)
    return pq.ParquetFile(path, filesystem=filesystem)


def path_of(store: ObjectStore) -> Path:
    return Path(store.uri(KEY).removeprefix("file://"))


# The file


@settings(deadline=None, print_blob=True, max_examples=30)
@given(sizes=st.lists(st.integers(0, 25), max_size=8))
def test_row_groups_are_full_for_any_sizes_of_batches(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    store = open_store(f"file://{tmp_path_factory.mktemp('parts')}/store")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts, "ROW_GROUP", 10)
        part = write(store, *(rows(size, first=sum(sizes[:number])) for number, size in enumerate(sizes)))
    with read(store) as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        assert file.read().to_pylist() == rows(sum(sizes)).to_pylist()
    assert groups == [10] * (sum(sizes) // 10) + [sum(sizes) % 10] * (sum(sizes) % 10 > 0)
    assert part.rows == sum(sizes)


def test_part_is_absent_until_its_block_ends(store: ObjectStore) -> None:
    with open_part(store, "folder", "part.parquet", SCHEMA) as part:
        part.write(rows(3))
        assert store.stat(KEY) is None
    assert store.stat(KEY) is not None


def test_part_is_absent_if_its_block_raises(store: ObjectStore) -> None:
    def fail(batches: Iterator[pa.RecordBatch]) -> None:
        with open_part(store, "folder", "part.parquet", SCHEMA) as part:
            for batch in batches:
                part.write(batch)
            raise KeyError

    with pytest.raises(KeyError):
        fail(iter([rows(3)]))
    assert list(store.list("")) == []


def test_part_describes_the_stored_file(store: ObjectStore) -> None:
    part, found = write(store, rows(7)), store.stat(KEY)
    assert found is not None
    digest = hashlib.sha256(store.read(KEY)).hexdigest()
    assert (part.name, part.size, part.etag) == ("part.parquet", found.size, found.etag)
    assert (part.sha256, part.rows) == (digest, 7)


# Damage


def intact(store: ObjectStore, part: PartFile) -> bool:
    found = store.stat(KEY)
    assert found is not None
    return is_intact(store, "folder", part, found.size, found.etag)


def test_part_as_written_is_intact_and_is_not_read(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    part = write(store, rows(7))
    monkeypatch.setattr(store, "arrow", None)
    assert intact(store, part)


def test_part_with_other_bytes_of_the_same_size_is_damaged(store: ObjectStore) -> None:
    part = write(store, rows(7))
    data = bytearray(store.read(KEY))
    data[20] ^= 1
    path_of(store).write_bytes(data)
    assert not intact(store, part)


def test_truncated_part_is_damaged(store: ObjectStore) -> None:
    part = write(store, rows(7))
    path_of(store).write_bytes(store.read(KEY)[:-1])
    assert not intact(store, part)


def test_copied_part_is_intact(store: ObjectStore) -> None:
    part = write(store, rows(7))
    data = store.read(KEY)
    path_of(store).unlink()
    path_of(store).write_bytes(data)
    assert store.stat(KEY) is not None
    assert intact(store, part)


def test_part_that_vanishes_after_it_was_listed_is_damaged(store: ObjectStore) -> None:
    part = write(store, rows(7))
    path_of(store).unlink()
    assert not is_intact(store, "folder", part, part.size, "another")


def test_part_without_a_digest_is_compared_by_size(store: ObjectStore) -> None:
    part = write(store, rows(7)).model_copy(update={"sha256": "", "etag": ""})
    assert intact(store, part)
    assert not is_intact(store, "folder", part, part.size + 1, "")


# Statistics


def statistics(store: ObjectStore, name: str, values: list[Any], kind: pa.DataType) -> tuple[Any, Any, Any]:
    """Return least, greatest and nulls of a column."""
    batch = pa.record_batch([pa.array(values, kind)], schema=pa.schema([(name, kind)]))
    found = json.loads(write_part(store, "folder", "part.parquet", batch).statistics)
    assert found["numRecords"] == len(values)
    return found["minValues"].get(name), found["maxValues"].get(name), found["nullCount"].get(name)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([3, None, 1], pa.int16(), (1, 3, 1)),
        (["b", "a\u0301", None, "ä", "Z", "\U0001f455", "\uffff"], pa.string(), ("Z", "\U0001f455", 1)),
        (['quote"\n\x7f'], pa.string(), ('quote"\n\x7f', 'quote"\n\x7f', 0)),
        ([None, None], pa.string(), (None, None, 2)),
        ([], pa.int16(), (None, None, None)),
        ([True, False], pa.bool_(), (None, None, 0)),
        ([0.5, float("inf")], pa.float32(), (None, None, 0)),
        (["short", "x" * 513], pa.string(), (None, None, 0)),
        (["x", "y" * 5000], pa.string(), (None, None, 0)),
        (["x" * 512], pa.string(), ("x" * 512, "x" * 512, 0)),
        (["b", "a"], pa.dictionary(pa.int8(), pa.string()), ("a", "b", 0)),
    ],
)
def test_bounds_of_a_column(
    store: ObjectStore, values: list[Any], kind: pa.DataType, expected: tuple[Any, ...]
) -> None:
    assert statistics(store, "column", values, kind) == expected


def test_bounds_of_a_float_are_exactly_its_values(store: ObjectStore) -> None:
    least, greatest, _ = statistics(store, "confidence", [0.1, 0.7], pa.float32())
    assert pa.array([least, greatest], pa.float32()).to_pylist() == pa.array([0.1, 0.7], pa.float32()).to_pylist()
    assert least <= pa.scalar(0.1, pa.float32()).as_py()


def test_column_has_no_bounds_if_a_row_group_has_none(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", 1)
    assert statistics(store, "image", ["a", "x" * 5000], pa.string())[:2] == (None, None)


def test_row_group_of_nulls_does_not_hide_the_bounds_of_others(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", 1)
    assert statistics(store, "label", [None, 5, 2], pa.int16()) == (2, 5, 1)


@settings(deadline=None, print_blob=True, max_examples=50)
@given(values=st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20))
def test_every_text_lies_within_its_bounds(tmp_path_factory: pytest.TempPathFactory, values: list[str | None]) -> None:
    store = open_store(f"file://{tmp_path_factory.mktemp('parts')}/store")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts, "ROW_GROUP", 3)
        least, greatest, nulls = statistics(store, "image", values, pa.string())
    known = [value.encode() for value in values if value is not None]
    assert nulls == values.count(None)
    assert (least, greatest) == ((min(known).decode(), max(known).decode()) if known else (None, None))
