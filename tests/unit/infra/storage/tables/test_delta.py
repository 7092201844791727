"""Delta tables have the schema that readers expect, and a batch is committed once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from fmnist_model.predictions import prediction_schema, quarantine_schema
from infra.storage.keys import part_name
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.delta import DeltaSnapshot, ensure_delta, open_delta
from infra.storage.tables.parts import PartFile, open_part, statistics_of
from tests.unit.infra.storage.tables.finished_shards import PREDICTIONS, images, opened, rows_of, write_part

FOLDER = "predictions/t"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def ensure(store: ObjectStore, schema: pa.Schema = PREDICTIONS) -> DeltaSnapshot:
    return ensure_delta(store, FOLDER, schema, name="t", description="One prediction per row")


def part(store: ObjectStore, batch: str, names: Sequence[str], shard: int = 0) -> PartFile:
    rows = pa.record_batch([names, [number % 10 for number in range(len(names))]], schema=PREDICTIONS)
    return write_part(store, FOLDER, part_name(batch, shard, "0" * 12), rows)


def location(store: ObjectStore) -> str:
    return store.delta(f"{FOLDER}/").uri


# The schema


@pytest.mark.parametrize("schema", [prediction_schema(), quarantine_schema()], ids=["predictions", "quarantine"])
def test_classes_are_short_and_dictionaries_are_decoded(store: ObjectStore, schema: pa.Schema) -> None:
    found = {field.name: field for field in ensure(store, schema).table.schema().fields}
    assert list(found) == [*schema.names, "batch"]
    kinds = {name: str(field.type) for name, field in found.items()}
    for name in {"predicted_class", "label"} & kinds.keys():
        assert '"short"' in kinds[name]
    for name in {"predicted_label", "model_version", "reason_kind"} & kinds.keys():
        assert '"string"' in kinds[name]


def test_probabilities_are_a_list_of_floats(store: ObjectStore) -> None:
    [field] = [field for field in ensure(store, prediction_schema()).table.schema().fields if "prob" in field.name]
    assert (field.type.type, field.type.element_type.type) == ("array", "float")


def test_every_column_has_a_comment(store: ObjectStore) -> None:
    assert all(field.metadata["comment"] for field in ensure(store, prediction_schema()).table.schema().fields)


def test_batch_is_the_partition_column(store: ObjectStore) -> None:
    metadata = ensure(store).table.metadata()
    assert (metadata.name, metadata.partition_columns) == ("t", ["batch"])


def test_table_that_does_not_exist_is_none(store: ObjectStore) -> None:
    assert open_delta(store, FOLDER) is None


def test_eight_threads_create_one_table(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: ensure(store).table.version(), range(8)))
    assert found == [0] * 8
    assert opened(store, FOLDER).table.version() == 0


# Commits


def test_batch_is_held_after_its_commit_only(store: ObjectStore) -> None:
    snapshot = ensure(store)
    assert not snapshot.holds("b")
    assert snapshot.add({"b": [part(store, "b", images(3))]})
    assert snapshot.holds("b")
    assert opened(store, FOLDER).holds("b")
    assert not opened(store, FOLDER).holds("c")


def test_batch_without_parts_is_held(store: ObjectStore) -> None:
    assert ensure(store).add({"b": []})
    assert opened(store, FOLDER).holds("b")
    assert rows_of(store, FOLDER) == []


def test_second_commit_adds_nothing(store: ObjectStore) -> None:
    first, late = ensure(store), ensure(store)
    assert first.add({"b": [part(store, "b", images(3))]})
    assert not late.add({"b": [part(store, "b", images(2), shard=1)]})
    assert not opened(store, FOLDER).add({"b": [part(store, "b", images(2), shard=1)]})
    assert rows_of(store, FOLDER) == images(3)


def test_batches_commit_next_to_each_other(store: ObjectStore) -> None:
    snapshots = [ensure(store) for _ in range(3)]
    for number, snapshot in enumerate(snapshots):
        assert snapshot.add({f"b{number}": [part(store, f"b{number}", images(1, first=number))]})
    assert rows_of(store, FOLDER) == images(3)
    assert {batch: len(names) for batch, names in opened(store, FOLDER).part_names().items()} == {
        "b0": 1,
        "b1": 1,
        "b2": 1,
    }


def test_several_batches_are_committed_together_or_not_at_all(store: ObjectStore) -> None:
    ensure(store).add({"b": [part(store, "b", images(1))]})
    more = {name: [part(store, name, images(1, first=5), shard=1)] for name in ("c", "b")}
    assert not opened(store, FOLDER).add(more)
    assert rows_of(store, FOLDER) == images(1)


def test_commit_syncs_the_versions_up_to_its_own(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(store, "sync_delta", lambda *arguments, **_: synced.append(arguments[1]))
    first, second = ensure(store), ensure(store)
    first.add({"b": []})
    second.add({"c": []})
    assert synced == [0, 1, 1, 2]


def test_part_is_replaced_by_another(store: ObjectStore) -> None:
    ensure(store).add({"b": [part(store, "b", images(3))], "c": [part(store, "c", images(1, first=9))]})
    snapshot = opened(store, FOLDER)
    names = snapshot.part_names()["b"]
    assert snapshot.replace("b", names, [part(store, "b", images(2), shard=1)], data_change=True)
    assert rows_of(store, FOLDER) == [*images(2), *images(1, first=9)]
    assert all(store.stat(f"{FOLDER}/{name}") for name in names)


def test_of_two_replacements_on_one_snapshot_only_the_first_succeeds(store: ObjectStore) -> None:
    ensure(store).add({"b": [part(store, "b", images(3))]})
    first, late = opened(store, FOLDER), opened(store, FOLDER)
    names = first.part_names()["b"]
    assert first.replace("b", names, [part(store, "b", images(3), shard=1)], data_change=False)
    assert not late.replace("b", names, [part(store, "b", images(3), shard=2)], data_change=False)
    assert rows_of(store, FOLDER) == images(3)


# Readers


def write_rows(store: ObjectStore) -> dict[str, Any]:
    """Commit two parts with names that sort in unusual ways, nulls and long URIs. Return the label of each image."""
    names = ["file:///ä.png", "file:///a\u0301.png", "file:///\U0001f455.png", "file:///Z.png", f"file:///{'x' * 600}"]
    ensure(store).add({"b": [part(store, "b", images(10))], "c": [part(store, "c", names, shard=1)]})
    return {row["image"]: row["label"] for row in opened(store, FOLDER).dataset().to_table().to_pylist()}


def test_data_skipping_in_pyarrow_loses_no_row(store: ObjectStore) -> None:
    labels = write_rows(store)
    dataset = opened(store, FOLDER).dataset()
    assert len(labels) == 15
    for image, label in labels.items():
        found = dataset.to_table(filter=(pc.field("image") == image) & (pc.field("label") == label))
        assert found.num_rows == 1


def test_data_skipping_in_duckdb_loses_no_row(store: ObjectStore) -> None:
    labels = write_rows(store)
    rows = opened(store, FOLDER).dataset()
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        for image, label in labels.items():
            query = "SELECT count(*) FROM rows WHERE image >= $image AND image <= $image AND label = $label"
            assert connection.execute(query, {"image": image, "label": label}).fetchall() == [(1,)]


def test_data_skipping_in_polars_loses_no_row(store: ObjectStore) -> None:
    for image, label in write_rows(store).items():
        wanted = (polars.col("image") == image) & (polars.col("label") == label)
        assert polars.scan_delta(location(store)).filter(wanted).collect().height == 1


def test_files_without_matching_rows_are_skipped(store: ObjectStore) -> None:
    write_rows(store)
    dataset = opened(store, FOLDER).dataset()
    fragments = list(dataset.get_fragments(filter=pc.field("label") == 7))
    assert [fragment.path.partition("/batch=")[2][0] for fragment in fragments] == ["b"]
    assert len(list(dataset.get_fragments(filter=pc.field("label") > 8))) == 1


def test_rows_of_some_batches_are_read(store: ObjectStore) -> None:
    write_rows(store)
    assert opened(store, FOLDER).dataset(["b"]).to_table().num_rows == 10
    assert opened(store, FOLDER).dataset(["b", "c"]).to_table().num_rows == 15
    assert opened(store, FOLDER).dataset([]).to_table().num_rows == 0


def test_part_of_the_old_layout_is_read_under_the_new_schema(store: ObjectStore) -> None:
    old = pa.schema(
        [
            pa.field("image", pa.string(), nullable=False),
            pa.field("predicted_class", pa.int8(), nullable=False),
            pa.field("predicted_label", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("probabilities", pa.list_(pa.float32(), 2), nullable=False),
        ]
    )
    labels = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(["Bag", "Coat"]))
    probabilities = pa.array([[0.25, 0.75], [0.5, 0.5]], pa.list_(pa.float32(), 2))
    rows = pa.record_batch([["a", "b"], pa.array([1, 127], pa.int8()), labels, probabilities], schema=old)
    with open_part(store, FOLDER, "batch=old/part-00000.parquet", old) as writer:
        writer.write(rows)
    new = old.set(1, pa.field("predicted_class", pa.int16(), nullable=False))
    ensure(store, new).add({"old": [writer.finished]})
    found = DeltaTable(location(store)).to_pyarrow_table()
    assert found.schema.field("predicted_class").type == pa.int16()
    assert found.drop_columns(["batch"]).to_pylist() == pa.table(rows).to_pylist()
    frame = polars.scan_delta(location(store), use_pyarrow=True).collect()
    assert frame["predicted_class"].to_list() == [1, 127]


def test_statistics_of_a_file_without_rows_have_no_bounds(tmp_path: Path) -> None:
    pq.write_table(PREDICTIONS.empty_table(), tmp_path / "empty.parquet")
    found = statistics_of(pq.read_metadata(tmp_path / "empty.parquet"))
    assert '"numRecords": 0' in found
    assert "image" not in found.partition("nullCount")[0]
