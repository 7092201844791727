"""What a training run is, before and after; free of Prefect, for the workers import it."""

from dataclasses import dataclass
from typing import Any

from infra.storage.model_registry import ModelVersion


@dataclass(frozen=True)
class RunToTrain:
    """A run's id, its recipe, and what it begins with."""

    id: str
    recipe: dict[str, Any]
    initial: ModelVersion | None = None
    """Whose weights the run begins with; None: random ones, or those of a version that is gone."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run."""

    run_id: str
    epoch: int
    """Of its last checkpoint."""
    workers: int
    """That finished the run."""
    device: str
    loss: float
    accuracy: float
    """On the training images of the last epoch."""
    validation_accuracy: float | None
    """After the last epoch; None where no image was held out."""
    images_per_second: float
    """Of the training loop, all workers together."""
    seconds: float
    """In the training loop, checkpoints included, since the last start of the workers."""
    warnings: list[str]
    """Of damaged checkpoints that were passed over."""
