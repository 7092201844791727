"""A checkpoint becomes one version however often it is registered, and champion unless it is worse."""

from pathlib import Path

import numpy as np
import pytest

from fmnist_model.evaluation.results import Evaluation, Reliability, TestResult
from infra.storage.checkpoints import WEIGHTS, write_checkpoint
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import ObjectStore, open_store
from tasks.training.register import register_model
from tasks.training.run import TrainedRun


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("FMNIST_STORE", str(tmp_path / "store"))
    return open_store(f"file://{tmp_path}/store")


def trained(
    store: ObjectStore, run_id: str = "run", epoch: int = 1, weights: bytes = b"weights", data_version: str = "tests@1"
) -> TrainedRun:
    """A finished run whose last checkpoint is of this epoch."""
    write_checkpoint(
        store,
        run_id=run_id,
        epoch=epoch,
        files={WEIGHTS: weights},
        metrics={},
        parameters={},
        data_version=data_version,
    )
    return TrainedRun(
        run_id=run_id,
        epoch=epoch,
        workers=1,
        device="cpu",
        loss=0.4,
        accuracy=0.9,
        validation_accuracy=None,
        images_per_second=1.0,
        seconds=1.0,
        warnings=[],
    )


def result_with(correct: int) -> TestResult:
    """A result on 100 images."""
    bins = Reliability(np.full(15, 10), np.full(15, 0.5), np.full(15, 0.5))
    evaluation = Evaluation(
        images=100,
        correct=correct,
        log_loss=0.5,
        confusion=np.zeros((10, 10), np.int64),
        reliability=bins,
        confident_errors=(),
    )
    return TestResult(
        evaluation=evaluation, uncalibrated=evaluation, temperature=1.0, validation_images=0, error_pictures=()
    )


def versions(store: ObjectStore) -> list[int]:
    return ModelRegistry(store).versions()


def test_checkpoint_registered_twice_is_one_version(store: ObjectStore):
    run = trained(store)
    first, second = (register_model.fn(run, result_with(90)) for _ in range(2))
    assert versions(store) == [1]
    assert second == first


def test_checkpoint_registered_again_after_others_is_the_same_version(store: ObjectStore):
    run = trained(store)
    first = register_model.fn(run, result_with(90))
    register_model.fn(trained(store, run_id="other"), result_with(80))
    assert register_model.fn(run, result_with(90)).version == first.version
    assert versions(store) == [1, 2]


def test_later_epoch_of_a_run_is_another_version(store: ObjectStore):
    register_model.fn(trained(store), result_with(90))
    register_model.fn(trained(store, epoch=2), result_with(90))
    assert versions(store) == [1, 2]


def test_same_weights_of_another_run_are_another_version(store: ObjectStore):
    register_model.fn(trained(store), result_with(90))
    register_model.fn(trained(store, run_id="other"), result_with(90))
    assert versions(store) == [1, 2]


def test_retrained_epoch_with_other_weights_is_another_version(store: ObjectStore):
    register_model.fn(trained(store), result_with(90))
    for stat in list(store.list("runs/run/checkpoints/")):
        store.delete(stat.key)
    register_model.fn(trained(store, weights=b"other weights"), result_with(90))
    assert versions(store) == [1, 2]


def test_equally_good_version_becomes_champion(store: ObjectStore):
    register_model.fn(trained(store), result_with(90))
    registration = register_model.fn(trained(store, run_id="other"), result_with(90))
    assert registration.champion == 2
    assert registration.standing == "champion"


def test_worse_version_does_not_become_champion(store: ObjectStore):
    register_model.fn(trained(store), result_with(90))
    registration = register_model.fn(trained(store, run_id="other"), result_with(89))
    assert registration.champion == 1
    assert "version 1" in registration.standing


def test_worse_version_on_other_test_images_becomes_champion(store: ObjectStore):
    register_model.fn(trained(store), result_with(90))
    assert register_model.fn(trained(store, run_id="other", data_version="tests@2"), result_with(50)).champion == 2


def test_newest_version_is_candidate_even_if_it_is_not_champion(store: ObjectStore):
    register_model.fn(trained(store), result_with(90))
    register_model.fn(trained(store, run_id="other"), result_with(80))
    candidate = ModelRegistry(store).alias("candidate")
    assert candidate is not None
    assert candidate.version == 2


def test_standing_names_the_champion(store: ObjectStore):
    assert register_model.fn(trained(store), result_with(90)).standing == "champion"
    assert "version 1" in register_model.fn(trained(store, run_id="other"), result_with(80)).standing
