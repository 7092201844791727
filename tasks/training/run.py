"""Define the data of a training run that travels between steps and workers."""

from dataclasses import dataclass
from typing import Any

from fmnist_model.training.recipe import TrainingRecipe
from infra.storage.model_registry import ModelVersion


@dataclass(frozen=True)
class RunToTrain:
    """A training run that is about to start or resume."""

    id: str
    recipe: TrainingRecipe
    initial: ModelVersion | None = None
    """Version whose weights the run starts with. None for random weights, or if the version is gone."""


@dataclass(frozen=True)
class TrainingJob:
    """Arguments of the training workers."""

    store: str
    """Root URI of the store."""
    run: RunToTrain
    data_version: str
    """Name and version of the dataset, such as `fashion-mnist@0123`, to record in checkpoints."""
    images: Any
    """Ray reference to the result of `load_images`. The workers of a node share one copy."""
    task_run_id: str | None = None
    """Id of the Prefect task run that shows the progress."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run."""

    run_id: str
    epoch: int
    """Epoch of the last checkpoint."""
    workers: int
    """Number of workers that finished the run. It can change when workers die or join."""
    device: str
    loss: float
    """Training loss of the last epoch."""
    accuracy: float
    """Accuracy on the training images of the last epoch."""
    validation_accuracy: float | None
    """Accuracy on the validation images after the last epoch. None without validation images."""
    images_per_second: float
    """Throughput of the training loop, all workers together."""
    seconds: float
    """Duration of the training loop including checkpoints, since the workers last started."""
    warnings: list[str]
    """Warnings about damaged checkpoints that were not used."""
