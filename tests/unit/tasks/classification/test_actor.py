"""A shard's parts contain each of its images once, and every attempt writes the same bytes."""

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from infra.storage.batch_plan import cut_into_shards, write_plan
from infra.storage.prediction_table import BatchPlan, ShardBooks, errors_key, existing_parts, part_key, read_books
from numpy.typing import NDArray
from PIL import Image

from fmnist_model.network import NeuralNetwork, save_weights
from infra.cluster.actor_pool import map_shards
from infra.cluster.progress_board import ProgressBoard
from infra.cluster.resources import ActorResources
from infra.storage.checkpoints import write_checkpoint
from infra.storage.model_registry import ModelRegistry, ModelVersion
from infra.storage.object_store import ObjectStore, open_store
from tasks.classification.actor import ShardClassifier
from tasks.classification.options import ReadOptions
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
        model_version="1",
        options=options.model_dump(),
        inputs=cut_into_shards(pieces, shard_work),
        scratch=scratch,
    )


def classify(store: ObjectStore, batch: BatchPlan, model: ModelVersion, shard: int = 0) -> ShardBooks:
    """Classify a shard with a new actor."""
    return ShardClassifier(store.root, batch, model).work(shard)


def read(store: ObjectStore, key: str) -> pa.Table:
    filesystem, path = store.arrow(key)
    return pq.read_table(path, filesystem=filesystem, partitioning=None)


def names(store: ObjectStore, key: str, folder: Path) -> list[str]:
    return [uri.removeprefix(f"file://{folder}/") for uri in read(store, key).column("image").to_pylist()]


def test_every_image_is_predicted_or_quarantined(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images)
    classify(store, batch, model)
    assert names(store, part_key(batch, 0), images) == ["a.png", "c.tar#member=1.png", "c.tar#member=2.png", "d.png"]
    assert names(store, errors_key(batch, 0), images) == ["b.png"]


def test_books_match_the_parts(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    books = classify(store, plan(store, tmp_path, images), model)
    assert (books.shard, books.planned, books.predicted, books.quarantined) == (0, 5, 4, 1)


def test_labels_stay_with_their_images(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images)
    classify(store, batch, model)
    assert read(store, part_key(batch, 0)).column("label").to_pylist() == [None, 9, None, None]


def test_shards_divide_the_images(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images, shard_work=1)
    actor = ShardClassifier(store.root, batch, model)
    books = [actor.work(shard) for shard in range(batch.shards)]
    assert batch.shards == 4
    assert sum(entry.predicted for entry in books) == 4
    assert existing_parts(store, batch) == [0, 1, 2, 3]


@pytest.mark.usefixtures("running_services")
def test_log_lines_of_an_actor_that_is_killed_right_after_are_not_lost(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    batch, board = plan(store, tmp_path, images, shard_work=1), ProgressBoard()
    board.take()
    for shard in range(batch.shards):
        with map_shards(ShardClassifier, (store.root, batch, model), [shard], ActorResources(), what="Test") as results:
            list(results)
    lines = [f"{line.source}: {line.text}" for line in board.take()[1] if "quarantine" not in line.text]
    assert len(lines) == batch.shards
    assert all(line.startswith(f"shard {shard}: ") for shard, line in enumerate(lines)), lines


def test_shard_without_errors_has_no_quarantine_part(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    (images / "b.png").unlink()
    batch = plan(store, tmp_path, images)
    classify(store, batch, model)
    assert store.stat(errors_key(batch, 0)) is None


def test_shard_with_only_errors_has_both_parts(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images / "b.png")
    books = classify(store, batch, model)
    assert (books.predicted, books.quarantined) == (0, 1)
    assert (len(read(store, part_key(batch, 0))), len(read(store, errors_key(batch, 0)))) == (0, 1)


def test_jpeg_with_a_negative_resolution_is_predicted(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    buffer = io.BytesIO()
    entries = struct.pack("<HHIIHHIHH", 0x011A, 10, 1, 38, 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + struct.pack("<ii", -1, 0)
    Image.fromarray(picture(4)).save(buffer, "JPEG", exif=exif)
    save_files(images, {"b.png": buffer.getvalue()})
    books = classify(store, plan(store, tmp_path, images), model)
    assert (books.predicted, books.quarantined) == (5, 0)


def probabilities(store: ObjectStore, batch: BatchPlan) -> NDArray[np.float64]:
    return np.array(read(store, part_key(batch, 0)).column("probabilities").to_pylist())


def test_probabilities_are_scaled_with_the_temperature_unless_switched_off(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    calibrated, raw = (
        plan(store, tmp_path, images, options=ReadOptions(calibrate=calibrate)) for calibrate in (True, False)
    )
    for batch in (calibrated, raw):
        classify(store, batch, model)
    assert calibrated.batch != raw.batch
    # Softmax at temperature T is the softmax to the power of 1/T, normalized to sum 1.
    expected = probabilities(store, raw) ** (1 / 1.7)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(store, calibrated), expected, rtol=1e-5)
    assert np.abs(probabilities(store, calibrated) - probabilities(store, raw)).max() > 1e-3


def test_part_records_the_temperature(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    recorded = []
    for calibrate in (True, False):
        batch = plan(store, tmp_path, images, options=ReadOptions(calibrate=calibrate))
        classify(store, batch, model)
        recorded.append(read(store, part_key(batch, 0)).schema.metadata[b"temperature"])
    assert recorded == [b"1.7", b"1.0"]


def test_batch_planned_by_a_release_without_calibration_uses_the_version_s_temperature(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    batch = plan(store, tmp_path, images)
    del batch.options["calibrate"]
    classify(store, batch, model.model_copy(update={"temperature": 1.0}))
    assert read(store, part_key(batch, 0)).schema.metadata[b"temperature"] == b"1.0"


def test_shard_classified_twice_has_the_same_bytes(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    batch = plan(store, tmp_path, images)
    written = []
    for _ in range(2):
        classify(store, batch, model)
        written.append([store.read(key) for key in (part_key(batch, 0), errors_key(batch, 0))])
        store.delete(part_key(batch, 0))
    assert written[0] == written[1]


def test_finished_shard_is_not_classified_again(store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path):
    batch = plan(store, tmp_path, images)
    classify(store, batch, model)
    (images / "a.png").write_bytes(b"changed")
    assert classify(store, batch, model) == read_books(store, batch, 0)


def test_failed_shard_leaves_no_part(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise OSError("no answer")

    batch = plan(store, tmp_path, images)
    monkeypatch.setattr("tasks.classification.read._read_container", fail)
    with pytest.raises(OSError, match="no answer"):
        classify(store, batch, model)
    assert [found.key for found in store.list(f"{batch.key}/")] == [f"{batch.key}/_plan.parquet"]


def test_quarantine_left_by_a_killed_run_is_removed_if_the_images_can_be_classified(
    store: ObjectStore, model: ModelVersion, images: Path, tmp_path: Path
):
    batch = plan(store, tmp_path, images / "a.png")
    (images / "a.png").rename(images / "away")
    classify(store, batch, model)
    store.delete(part_key(batch, 0))  # as if the run was killed after the quarantine, which is written first
    (images / "away").rename(images / "a.png")
    assert classify(store, batch, model).predicted == 1
    assert store.stat(errors_key(batch, 0)) is None
