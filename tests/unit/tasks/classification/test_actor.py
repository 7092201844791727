"""The attempt at a shard that counts has each image once, and a failed attempt leaves nothing."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from fmnist_model.network import NeuralNetwork, save_weights
from infra.cluster.actor_pool import map_shards
from infra.cluster.progress_board import ProgressBoard
from infra.cluster.resources import ActorResources
from infra.storage.checkpoints import write_checkpoint
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.model_registry import ModelRegistry, ModelVersion
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.planning.plan import BatchPlan, cut_into_shards, write_plan
from infra.storage.tables.records import ShardRecord, create_record, read_record, read_records
from tasks.classification.actor import ShardClassifier, ShardTask
from tasks.classification.classify import describe_shard, unfinished_shards
from tasks.classification.options import ReadOptions
from tasks.prometheus import IMAGES
from tests.unit.tasks.classification.image_inputs import OPTIONS, picture, plan_of, png, save_files, save_tar


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def model(store: ObjectStore) -> ModelVersion:
    files = {"model.safetensors": save_weights(NeuralNetwork())}
    checkpoint = write_checkpoint(
        store, run_id="run", epoch=1, files=files, metrics={}, parameters={}, data_version="tests"
    )
    return ModelRegistry(store).register(
        run_id="run",
        epoch=1,
        weights_sha256=checkpoint.files[0].sha256,
        metrics={},
        parameters={},
        data_version="tests",
        temperature=1.7,
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images, a file that is not an image, and a tar with two images."""
    folder = tmp_path / "images"
    save_files(folder, {"a.png": png(0), "b.png": b"not an image", "d.png": png(3)})
    save_tar(folder / "c.tar", [("1.png", png(1)), ("1.cls", b"9"), ("2.png", png(2))])
    return folder


def plan(
    store: ObjectStore, scratch: Path, folder: Path, *, shard_work: float = 1e18, options: ReadOptions = OPTIONS
) -> BatchPlan:
    pieces = [batch.drop_columns(["shard"]) for batch in plan_of(folder).to_batches()]
    return write_plan(
        store,
        table="t",
        number=7,
        model_version="1",
        options=options.model_dump(),
        inputs=cut_into_shards(pieces, shard_work),
        superseded=0,
        scratch=scratch,
    )


def classify(store: ObjectStore, batch: BatchPlan, model: ModelVersion) -> ShardRecord:
    """Classify the first shard with a new actor."""
    return ShardClassifier(store.root, batch, model).work(ShardTask(0))


def predictions(store: ObjectStore, record: ShardRecord) -> pa.Table:
    """Read the predictions of a shard."""
    [part] = record.parts
    return read(store, f"{table_folder('t')}/{part.name}")


def quarantine(store: ObjectStore, record: ShardRecord) -> pa.Table:
    """Read the quarantine of a shard."""
    [part] = record.quarantine
    return read(store, f"{quarantine_folder('t')}/{part.name}")


def read(store: ObjectStore, key: str) -> pa.Table:
    filesystem, path = store.arrow(key)
    return pq.read_table(path, filesystem=filesystem, partitioning=None)


def names(rows: pa.Table, folder: Path) -> list[str]:
    return [uri.removeprefix(f"file://{folder}/") for uri in rows.column("image").to_pylist()]


def test_every_image_is_predicted_or_quarantined(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    record = classify(store, plan(store, tmp_path, images), model)
    predicted = ["a.png", "c.tar#member=1.png", "c.tar#member=2.png", "d.png"]
    assert names(predictions(store, record), images) == predicted
    assert names(quarantine(store, record), images) == ["b.png"]


def test_record_matches_the_parts(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images)
    record = classify(store, batch, model)
    assert (record.shard, record.planned, record.predicted, record.quarantined) == (0, 5, 4, 1)
    assert ([part.rows for part in record.parts], [part.rows for part in record.quarantine]) == ([4], [1])
    assert read_records(store, batch) == {0: record}


def test_record_describes_the_rows(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    record = classify(store, plan(store, tmp_path, images), model)
    rows = predictions(store, record)
    classes = np.bincount(rows.column("predicted_class").to_numpy(), minlength=10)
    assert record.summary.class_counts == classes.tolist()
    assert sum(record.summary.confidence_sums) == pytest.approx(sum(rows.column("confidence").to_pylist()))
    assert [(cell.label, cell.images) for cell in record.summary.confusion] == [(9, 1)]
    assert {entry.image for entry in record.least_confident} == set(rows.column("image").to_pylist())
    assert [(reason.kind, reason.images) for reason in record.reasons] == [("not an image", 1)]
    assert record.reasons[0].example == f"file://{images}/b.png"


def test_labels_stay_with_their_images(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    record = classify(store, plan(store, tmp_path, images), model)
    assert predictions(store, record).column("label").to_pylist() == [None, 9, None, None]


def test_rows_name_the_versions_of_model_and_file(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    record = classify(store, plan(store, tmp_path, images), model)
    for rows in (predictions(store, record), quarantine(store, record)):
        assert set(rows.column("file_version").to_pylist()) == {7}
        assert set(rows.column("model_version").to_pylist()) == {"1"}


def test_suspect_shard_has_the_same_rows(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images, options=ReadOptions(invert="always"))
    actor = ShardClassifier(store.root, batch, model)
    found = [actor.work(task) for task in (ShardTask(0), ShardTask(0, number=1).as_suspect())]
    first, second = (predictions(store, record).drop_columns("probabilities") for record in found)
    assert first.drop_columns("confidence") == second.drop_columns("confidence")
    np.testing.assert_allclose(first.column("confidence"), second.column("confidence"), rtol=1e-5)
    assert quarantine(store, found[0]) == quarantine(store, found[1])


def test_failed_shard_is_named_with_its_batch_and_first_input(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    batch = plan(store, tmp_path, images, shard_work=1)
    named = describe_shard(store, batch, ShardTask(1))
    assert "shard 1 " in named
    assert batch.batch in named
    assert named.endswith(f"file://{images}/b.png")


def test_shards_divide_the_images(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images, shard_work=1)
    actor = ShardClassifier(store.root, batch, model)
    records = [actor.work(ShardTask(shard)) for shard in range(batch.shards)]
    assert batch.shards == 4
    assert sum(record.predicted for record in records) == 4
    assert read_records(store, batch) == dict(enumerate(records))


@pytest.mark.usefixtures("running_services")
def test_log_lines_of_an_actor_that_is_killed_right_after_are_not_lost(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    batch, board = plan(store, tmp_path, images, shard_work=1), ProgressBoard()
    board.take()
    for shard in range(batch.shards):
        tasks, arguments = [ShardTask(shard)], (store.root, batch, model)
        with map_shards(ShardClassifier, arguments, tasks, ActorResources(), what="Test") as results:
            list(results)
    lines = [f"{line.source}: {line.text}" for line in board.take()[1] if "quarantine" not in line.text]
    assert len(lines) == batch.shards
    assert all(line.startswith(f"shard {shard}: ") for shard, line in enumerate(lines)), lines


def test_shard_without_errors_has_no_quarantine_part(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    (images / "b.png").unlink()
    record = classify(store, plan(store, tmp_path, images), model)
    assert record.quarantine == []
    assert list(store.list("quarantine/")) == []


def test_shard_with_only_errors_has_no_part_with_predictions(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    record = classify(store, plan(store, tmp_path, images / "b.png"), model)
    assert (record.predicted, record.quarantined, record.parts) == (0, 1, [])
    assert len(quarantine(store, record)) == 1
    assert list(store.list("predictions/")) == []


def test_jpeg_with_a_negative_resolution_is_predicted(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    buffer = io.BytesIO()
    entries = struct.pack("<HHIIHHIHH", 0x011A, 10, 1, 38, 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + struct.pack("<ii", -1, 0)
    Image.fromarray(picture(4)).save(buffer, "JPEG", exif=exif)
    save_files(images, {"b.png": buffer.getvalue()})
    record = classify(store, plan(store, tmp_path, images), model)
    assert (record.predicted, record.quarantined) == (5, 0)


def probabilities(store: ObjectStore, record: ShardRecord) -> NDArray[np.float64]:
    return np.array(predictions(store, record).column("probabilities").to_pylist())


def test_probabilities_are_scaled_with_the_temperature_unless_switched_off(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    plans = [plan(store, tmp_path, images, options=ReadOptions(calibrate=calibrate)) for calibrate in (True, False)]
    calibrated, raw = (probabilities(store, classify(store, batch, model)) for batch in plans)
    assert plans[0].batch != plans[1].batch
    # Softmax at temperature T is the softmax to the power of 1/T, normalized to sum 1.
    expected = raw ** (1 / 1.7)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrated, expected, rtol=1e-5)
    assert np.abs(calibrated - raw).max() > 1e-3


def test_part_records_the_temperature(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    recorded = []
    for calibrate in (True, False):
        batch = plan(store, tmp_path, images, options=ReadOptions(calibrate=calibrate))
        recorded.append(predictions(store, classify(store, batch, model)).schema.metadata[b"temperature"])
    assert recorded == [b"1.7", b"1.0"]


def test_batch_planned_by_a_release_without_calibration_uses_the_version_s_temperature(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    batch = plan(store, tmp_path, images)
    del batch.options["calibrate"]
    record = classify(store, batch, model.model_copy(update={"temperature": 1.0}))
    assert predictions(store, record).schema.metadata[b"temperature"] == b"1.0"


def test_finished_shard_is_not_classified_again(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images)
    record = classify(store, batch, model)
    (images / "a.png").write_bytes(b"changed")
    assert classify(store, batch, model) == record == read_record(store, batch, 0, 0)


def test_failed_shard_leaves_no_part_and_no_record(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise OSError("no answer")

    batch = plan(store, tmp_path, images)
    monkeypatch.setattr("tasks.classification.read._read_container", fail)
    with pytest.raises(OSError, match="no answer"):
        classify(store, batch, model)
    assert [found.key for found in store.list("") if batch.batch in found.key] == [f"work/t/{batch.batch}/plan.parquet"]


def test_shard_whose_decoding_fails_halfway_leaves_no_part_and_no_record(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decoded = ShardClassifier._classify
    calls: list[None] = []

    def fail_second(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise MemoryError
        return decoded(*arguments)

    batch = plan(store, tmp_path, images)
    monkeypatch.setattr(ShardClassifier, "_classify", fail_second)
    with pytest.raises(MemoryError):
        classify(store, batch, model)
    assert [found.key for found in store.list("") if batch.batch in found.key] == [f"work/t/{batch.batch}/plan.parquet"]


def test_first_attempt_counts_and_the_other_changes_nothing(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    batch = plan(store, tmp_path, images)
    first: list[ShardRecord] = []

    def finish_first(*arguments: Any) -> ShardRecord:
        """Let another attempt finish, after the inputs have been moved, right before this one creates its record."""
        if not first:
            first.append(ShardRecord(shard=0, planned=0, predicted=0, quarantined=0))
            first[0] = classify(store, batch, model)
            images.rename(tmp_path / "moved")
        return create_record(*arguments)

    monkeypatch.setattr("tasks.classification.actor.create_record", finish_first)
    assert classify(store, batch, model) == first[0]
    assert read_records(store, batch) == {0: first[0]}
    assert len(predictions(store, first[0])) == 4
    assert len(list(store.list("predictions/t/"))) == 2


@pytest.mark.parametrize("folder", ["predictions", "quarantine"])
def test_successor_replaces_a_damaged_part(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path, folder: str
):
    batch = plan(store, tmp_path, images, shard_work=1)
    actor = ShardClassifier(store.root, batch, model)
    records = {shard: actor.work(ShardTask(shard)) for shard in range(batch.shards)}
    [bad] = [shard for shard, record in records.items() if folder == "quarantine" and record.quarantine] or [0]
    for number in (1, 2):
        [part] = records[bad].quarantine if folder == "quarantine" else records[bad].parts
        path = Path(store.uri(f"{folder}/t/{part.name}").removeprefix("file://"))
        path.write_bytes(bytes(part.size))
        left = dict(records)
        assert unfinished_shards(store, batch, left) == [ShardTask(bad, number)]
        assert left.keys() == records.keys() - {bad}
        records[bad] = actor.work(ShardTask(bad, number))
    assert read_records(store, batch) == records
    assert records[bad].number == 2
    assert unfinished_shards(store, batch, dict(records)) == []


def test_shards_without_a_record_are_tasks(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images, shard_work=1)
    assert unfinished_shards(store, batch, {}) == [ShardTask(shard) for shard in range(4)]


def test_quarantined_images_are_counted_by_kind(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counted: dict[tuple[str, str], float] = {}
    monkeypatch.setattr("tasks.classification.tally._MAX_REASONS", 0)
    monkeypatch.setattr(
        type(IMAGES), "add", lambda self, value, **labels: counted.update({(self.name, str(labels)): value})
    )
    save_files(images, {"e.png": b"text", "f.png": b"", "g.png": png(1)[:-30]})
    classify(store, plan(store, tmp_path, images), model)
    assert {labels: value for (name, labels), value in counted.items() if name == IMAGES.name} == {
        str({"outcome": "predicted", "reason": ""}): 4,
        str({"outcome": "quarantined", "reason": "not an image"}): 3,
        str({"outcome": "quarantined", "reason": "truncated"}): 1,
    }
