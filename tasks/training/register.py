"""Register a trained model as a version, and make the best version champion."""

from dataclasses import dataclass

from fmnist_model.evaluation.results import TestResult
from fmnist_model.images import TRANSFORM_VERSION
from fmnist_model.weights import check_weights
from infra.errors import RequestError
from infra.orchestration.events import MODEL_PROMOTED, announce
from infra.settings import load_settings
from infra.storage.checkpoints import WEIGHTS, read_record
from infra.storage.model_registry import AliasRecord, ModelRegistry, ModelVersion, read_weights
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.retention import prune_run
from tasks.step import step
from tasks.training.run import TrainedRun


@dataclass(frozen=True)
class Registration:
    """Result of registering a trained model."""

    version: ModelVersion
    champion: int
    """Number of the version that is champion now."""

    @property
    def standing(self) -> str:
        """Standing of the version in a few words: `champion`, or which version is better."""
        is_champion = self.champion == self.version.version
        return "champion" if is_champion else f"version {self.champion} is better and stays champion"


@step("register model")
def register_model(run: TrainedRun, result: TestResult) -> Registration:
    """Register a run's last checkpoint as a version, and make it champion unless it is worse than the champion.

    Registering the same checkpoint again returns the same version. Versions are compared on the same test images only.
    """
    store = open_store(load_settings().store)
    registry = ModelRegistry(store)
    record = read_record(store, run.run_id, run.epoch)
    weights = next(file.sha256 for file in record.files if file.name == WEIGHTS)
    version = _existing_version(registry, run, weights) or registry.register(
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
        transform=TRANSFORM_VERSION,
    )
    registry.point("candidate", version.version)
    champion = registry.alias("champion")
    if champion is None or not is_worse(version, registry.version(champion.version)):
        champion = _promote(registry, version)
    return Registration(version=version, champion=champion.version)


@step("prune checkpoints")
def prune_checkpoints(run: TrainedRun, keep_best: int) -> None:
    """Remove a finished run's checkpoints, except the best, the last, and those of model versions.

    Args:
        run: the finished run.
        keep_best: number of best checkpoints to keep.
    """
    prune_run(open_store(load_settings().store), run.run_id, keep_best=keep_best)


def is_worse(version: ModelVersion, champion: ModelVersion) -> bool:
    """Check whether a version has a lower test accuracy than the champion. False if their test images differ."""
    same_data = version.data_version == champion.data_version
    return same_data and version.metrics["test_accuracy"] < champion.metrics["test_accuracy"]


def promote_version(store: ObjectStore, number: int, *, force: bool) -> AliasRecord:
    """Make a version the champion.

    Raises:
        ModelNotFound: the version doesn't exist.
        CheckpointCorrupt: the version's checkpoint is damaged.
        InvalidWeights: the version's weights don't fit the network.
        RequestError: the version is worse than the champion on the same test images, and `force` is false.
    """
    registry = ModelRegistry(store)
    version = registry.version(number)
    check_weights(*read_weights(store, version))
    current = registry.alias("champion")
    if current is not None and not force:
        champion = registry.version(current.version)
        if is_worse(version, champion):
            raise RequestError(
                f"Version {number} classifies {version.metrics['test_accuracy']:.2%} of the test images correctly, and "
                f"the champion (version {champion.version}) {champion.metrics['test_accuracy']:.2%}. Use --force to "
                "promote it anyway."
            )
    return _promote(registry, version)


def _promote(registry: ModelRegistry, version: ModelVersion) -> AliasRecord:
    before = registry.alias("champion")
    record = registry.point("champion", version.version)
    if before is None or before.version != version.version:
        accuracy = version.metrics.get("test_accuracy")
        announce(MODEL_PROMOTED, f"model.{version.name}", version=version.version, test_accuracy=accuracy)
    return record


def _existing_version(registry: ModelRegistry, run: TrainedRun, weights_sha256: str) -> ModelVersion | None:
    """Find the version that an earlier attempt registered with this checkpoint."""
    wanted = (run.run_id, run.epoch, weights_sha256)
    versions = registry.newest_first()
    return next((v for v in versions if (v.run_id, v.epoch, v.weights_sha256) == wanted), None)
