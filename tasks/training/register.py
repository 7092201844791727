"""Make a version of a trained model, and the best one champion."""

from dataclasses import dataclass

from fmnist_model.evaluation.results import TestResult
from fmnist_model.weights import check_weights
from infra.errors import RequestError
from infra.orchestration.events import MODEL_PROMOTED, announce
from infra.settings import load_settings
from infra.storage.checkpoints import WEIGHTS, read_record
from infra.storage.model_registry import AliasRecord, ModelRegistry, ModelVersion, read_weights
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.retention import prune_run
from tasks.step import step
from tasks.training.trained_run import TrainedRun


@dataclass(frozen=True)
class Registration:
    """What became of a trained model."""

    version: ModelVersion
    champion: int
    """The version that is champion now."""


@step("register model")
def register_model(run: TrainedRun, result: TestResult) -> Registration:
    """Register a run's last checkpoint; it becomes champion unless the champion does better on the same test images."""
    store = open_store(load_settings().store)
    registry = ModelRegistry(store)
    record = read_record(store, run.run_id, run.epoch)
    weights = next(file.sha256 for file in record.files if file.name == WEIGHTS)
    version = _registered_before(registry, run, weights) or registry.register(
        run_id=run.run_id,
        epoch=run.epoch,
        weights_sha256=weights,
        metrics={
            "test_accuracy": result.accuracy,
            "test_correct": result.correct,
            "test_log_loss": result.evaluation.log_loss,
            "test_calibration_error": result.evaluation.calibration_error,
        },
        parameters=record.parameters,
        data_version=record.data_version,
        temperature=result.temperature,
    )
    registry.point("candidate", version.version)
    champion = registry.alias("champion")
    if champion is None or not is_worse(version, registry.version(champion.version)):
        champion = _promote(registry, version)
    return Registration(version=version, champion=champion.version)


@step("prune checkpoints")
def prune_checkpoints(run: TrainedRun, keep_best: int) -> None:
    """Keep a finished run's best checkpoints, its last, and those that versions stand for."""
    prune_run(open_store(load_settings().store), run.run_id, keep_best=keep_best)


def is_worse(version: ModelVersion, champion: ModelVersion) -> bool:
    """Whether a version does worse than the champion on the same test images; on others they can't be compared."""
    same_data = version.data_version == champion.data_version
    return same_data and version.metrics["test_accuracy"] < champion.metrics["test_accuracy"]


def promote_version(store: ObjectStore, number: int, *, force: bool) -> AliasRecord:
    """Make a version the champion.

    Raises:
        ModelNotFound: there is no such version.
        CheckpointCorrupt: its checkpoint is not the one that was written.
        InvalidWeights: its weights are another network's.
        RequestError: it does worse than the champion on the same test images, and `force` was not said.
    """
    registry = ModelRegistry(store)
    version = registry.version(number)
    check_weights(*read_weights(store, version))
    current = registry.alias("champion")
    if current is not None and not force:
        champion = registry.version(current.version)
        if is_worse(version, champion):
            raise RequestError(
                f"Version {number} classifies {version.metrics['test_accuracy']:.2%} of the test images rightly, the "
                f"champion (version {champion.version}) {champion.metrics['test_accuracy']:.2%}. --force promotes it "
                "all the same."
            )
    return _promote(registry, version)


def _promote(registry: ModelRegistry, version: ModelVersion) -> AliasRecord:
    before = registry.alias("champion")
    record = registry.point("champion", version.version)
    if before is None or before.version != version.version:
        accuracy = version.metrics.get("test_accuracy")
        announce(MODEL_PROMOTED, f"model.{version.name}", version=version.version, test_accuracy=accuracy)
    return record


def _registered_before(registry: ModelRegistry, run: TrainedRun, weights_sha256: str) -> ModelVersion | None:
    """The version that an earlier try of this run made, if it came so far."""
    wanted = (run.run_id, run.epoch, weights_sha256)
    versions = registry.newest_first()
    return next((v for v in versions if (v.run_id, v.epoch, v.weights_sha256) == wanted), None)
