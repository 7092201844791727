"""What a training run reports: progress during an epoch, and metrics after it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepProgress:
    """Progress of one rank within an epoch."""

    epoch: int
    """Number of the current epoch, from 1."""
    epochs: int
    """Number of epochs in the run."""
    step: int
    """Steps finished since the start of the run."""
    steps: int
    """Number of steps in the run."""
    global_batch_size: int
    """Images per step, over all ranks together."""
    loss: float
    """Mean loss of this rank's images since the start of the epoch, in nats."""
    accuracy: float
    """Share of these images predicted correctly, 0 to 1."""
    images_per_second: float
    """Throughput of all ranks together since the start of the epoch."""


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch, over all ranks."""

    epoch: int
    """Number of the epoch, from 1."""
    loss: float
    """Mean loss of the augmented training images, in nats."""
    accuracy: float
    """Share of the augmented training images predicted correctly, 0 to 1."""
    validation_loss: float | None
    """Mean loss of the validation images without augmentation, in nats. None without validation images."""
    validation_accuracy: float | None
    """Share of the validation images predicted correctly, 0 to 1. None without validation images."""
    learning_rate: float
    """Learning rate of the last step."""
    images: int
    """Images trained on in this epoch."""
    seconds: float
    """Duration of training and validation."""
    step_losses: NDArray[np.float64]
    """`[steps of the epoch]`: mean loss of each step's images, in nats."""
    step_learning_rates: NDArray[np.float64]
    """`[steps of the epoch]`: learning rate of each step."""
