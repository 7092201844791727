"""A resumed run keeps its recipe and its initial weights, and survives damaged checkpoints."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fmnist_model.dataset import to_table
from fmnist_model.errors import InvalidDataset
from fmnist_model.network import NeuralNetwork, save_weights
from fmnist_model.training.recipe import PRESETS
from infra.errors import RequestError
from infra.provenance import Provenance
from infra.storage.checkpoints import (
    STATE,
    WEIGHTS,
    Checkpoint,
    CheckpointCorrupt,
    CheckpointNotFound,
    list_checkpoints,
    read_record,
    remove_checkpoint,
    write_checkpoint,
)
from infra.storage.datasets import DatasetRecord, DatasetSplit
from infra.storage.model_registry import ModelRegistry, ModelVersion, read_weights
from infra.storage.object_store import ObjectStore, open_store
from tasks.training.begin import begin_run, run_recipe
from tasks.training.metrics import write_metrics
from tasks.training.run import RunToTrain, TrainedRun
from tasks.training.worker import _initial_network, _newest_undamaged, load_images

RECIPE = asdict(PRESETS["quick"])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("FMNIST_STORE", str(tmp_path / "store"))
    return open_store(f"file://{tmp_path}/store")


def checkpoint(store: ObjectStore, epoch: int = 1, parameters: Any = RECIPE, run_id: str = "run") -> Checkpoint:
    torch.manual_seed(epoch)
    files = {WEIGHTS: save_weights(NeuralNetwork()), STATE: b"state"}
    return write_checkpoint(
        store,
        run_id=run_id,
        epoch=epoch,
        files=files,
        metrics={"loss": 1 / epoch},
        steps={"loss": [2 / epoch, 1 / epoch], "learning_rate": [0.1, 0.2]},
        parameters=parameters,
        data_version="tests",
    )


def register(store: ObjectStore, record: Checkpoint) -> ModelVersion:
    [weights] = [file.sha256 for file in record.files if file.name == WEIGHTS]
    return ModelRegistry(store).register(
        run_id=record.run_id,
        epoch=record.epoch,
        weights_sha256=weights,
        metrics={},
        parameters=record.parameters,
        data_version="tests",
    )


def damage(store: ObjectStore, record: Checkpoint, name: str) -> None:
    with store.publish(f"{record.key}/{name}") as stream:
        stream.write(b"damaged")


# The recipe


def test_run_of_another_release_is_refused_with_the_fields_that_differ(store: ObjectStore):
    checkpoint(store, parameters={name: value for name, value in RECIPE.items() if name != "flip"} | {"momentum": 0.9})
    with pytest.raises(RequestError) as error:
        run_recipe(store, "run", {})
    assert all(word in str(error.value) for word in ("Run run", "flip", "momentum"))


def test_damaged_record_does_not_hide_the_recipe(store: ObjectStore):
    checkpoint(store, 1)
    damage(store, checkpoint(store, 2), "checkpoint.json")
    assert run_recipe(store, "run", {}) == PRESETS["quick"]


@pytest.mark.parametrize(("name", "value"), [("epochs", 99), ("learning_rate", 0.5), ("seed", 3)])
def test_resumed_run_refuses_a_change_of_its_recipe(store: ObjectStore, name: str, value: float):
    checkpoint(store)
    with pytest.raises(RequestError) as error:
        begin_run.fn("quick", {name: value}, "run")
    assert all(word in str(error.value) for word in ("Run run", name.replace("_", " "), str(value)))


def test_resumed_run_accepts_options_equal_to_its_recipe(store: ObjectStore):
    checkpoint(store)
    assert begin_run.fn("full", {"epochs": RECIPE["epochs"]}, "run").recipe == PRESETS["quick"]


# The initial weights


def test_resumed_run_without_an_intact_checkpoint_starts_from_the_model_again(store: ObjectStore):
    version = register(store, checkpoint(store, run_id="champion"))
    damage(store, checkpoint(store, parameters=RECIPE | {"initial_weights": version.weights_sha256}), WEIGHTS)
    run = begin_run.fn("quick", {}, "run")
    assert _newest_undamaged(store, "run")[0] is None
    assert save_weights(_initial_network(store, run)) == read_weights(store, version)[0]


def test_run_whose_initial_weights_are_missing_is_refused(store: ObjectStore):
    checkpoint(store, parameters=RECIPE | {"initial_weights": "12" * 32})
    with pytest.raises(CheckpointNotFound, match="121212121212"):
        _initial_network(store, begin_run.fn("quick", {}, "run"))


def test_run_without_a_model_starts_with_random_weights(store: ObjectStore):
    assert _initial_network(store, RunToTrain("run", PRESETS["quick"])) is None


@pytest.mark.parametrize("missing", [True, False], ids=["removed", "damaged"])
def test_model_without_its_checkpoint_is_refused_before_training(store: ObjectStore, missing: bool):
    record = checkpoint(store)
    register(store, record)
    if missing:
        remove_checkpoint(store, "run", 1)
    else:
        damage(store, record, WEIGHTS)
    with pytest.raises(CheckpointNotFound if missing else CheckpointCorrupt, match="epoch"):
        begin_run.fn("quick", {}, None, "1")


def test_version_whose_checkpoint_has_other_weights_is_refused(store: ObjectStore):
    version = register(store, checkpoint(store, 2))
    remove_checkpoint(store, "run", 2)
    other = save_weights(NeuralNetwork())
    write_checkpoint(
        store, run_id="run", epoch=2, files={WEIGHTS: other}, metrics={}, parameters=RECIPE, data_version="tests"
    )
    with pytest.raises(CheckpointCorrupt, match=r"epoch-0002.*version 1\b"):
        read_weights(store, version)


# Damaged checkpoints


def test_damaged_checkpoint_is_removed_and_the_previous_one_used(store: ObjectStore):
    checkpoint(store, 1)
    damage(store, checkpoint(store, 2), STATE)
    epoch, [warning] = _newest_undamaged(store, "run")
    assert epoch == 1
    assert "epoch 2" in warning
    assert STATE in warning
    assert list_checkpoints(store, "run") == [1]


def test_damaged_checkpoint_stays_if_a_version_uses_its_intact_weights(store: ObjectStore):
    checkpoint(store, 1)
    record = checkpoint(store, 2)
    version = register(store, record)
    damage(store, record, STATE)
    epoch, [warning] = _newest_undamaged(store, "run")
    assert epoch == 1
    assert "epoch 2" in warning
    assert list_checkpoints(store, "run") == [1, 2]
    read_weights(store, version)


def test_damaged_weights_of_a_version_are_removed(store: ObjectStore):
    record = checkpoint(store)
    register(store, record)
    damage(store, record, WEIGHTS)
    assert _newest_undamaged(store, "run")[0] is None
    assert list_checkpoints(store, "run") == []


def test_damaged_record_of_an_older_epoch_loses_only_its_metrics(store: ObjectStore):
    for epoch in (1, 2, 3):
        checkpoint(store, epoch)
    damage(store, read_record(store, "run", 2), "checkpoint.json")
    run = TrainedRun(
        run_id="run",
        epoch=3,
        workers=1,
        device="cpu",
        loss=0.3,
        accuracy=0.9,
        validation_accuracy=None,
        images_per_second=1.0,
        seconds=1.0,
        warnings=[],
    )
    write_metrics.fn(run, tensorboard=False)
    filesystem, path = store.arrow("runs/run/metrics.parquet")
    assert pq.read_table(path, filesystem=filesystem)["epoch"].to_pylist() == [1, 3]
    filesystem, path = store.arrow("runs/run/steps.parquet")
    assert pq.read_table(path, filesystem=filesystem).to_pydict() == {
        "epoch": [1, 1, 3, 3],
        "step": [1, 2, 5, 6],
        "loss": [2.0, 1.0, 2 / 3, 1 / 3],
        "learning_rate": [0.1, 0.2, 0.1, 0.2],
    }


# The images


def test_invalid_test_images_are_refused_before_training(store: ObjectStore):
    images = np.zeros((20, 28, 28), np.uint8)
    labels = {"train": np.arange(20) % 10, "test": np.full(20, 10)}
    splits = {}
    for split, classes in labels.items():
        with store.publish(f"datasets/tests/{split}.parquet") as stream:
            pq.write_table(to_table(images, classes, 0, split), stream)
        splits[split] = DatasetSplit(parts=[f"datasets/tests/{split}.parquet"], images=20)
    record = DatasetRecord(name="tests", version="1", source="here", splits=splits, provenance=Provenance.now())
    with pytest.raises(InvalidDataset, match=r"datasets/tests/test.* row 0 .*10"):
        load_images(store.root, record, 0)
