"""Checks that stop a run that learns nothing any more."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.network import NeuralNetwork

_DIVERGED_LOSS = 3 * math.log(len(CLASS_NAMES))
"""Mean loss of an epoch, in nats, above which the run has diverged: three times the loss of guessing."""


class TrainingDiverged(ArithmeticError):
    """The loss or a weight has stopped being finite, or the loss is far above that of guessing."""


def check_losses(epoch: int, losses: NDArray[np.float64], learning_rate: float) -> None:
    """Check the losses of an epoch.

    Args:
        epoch: number of the epoch, from 1.
        losses: `[steps of the epoch]`, mean loss of each step, in nats.
        learning_rate: peak learning rate of the run, for the error message.

    Raises:
        TrainingDiverged: a loss is not finite, or their mean is more than three times the loss of guessing.
    """
    steps_before = (epoch - 1) * len(losses)
    if not np.isfinite(losses).all():
        first = int(np.argmin(np.isfinite(losses)))
        raise TrainingDiverged(
            f"The loss became {losses[first]} in epoch {epoch}, step {steps_before + first + 1}. "
            f"{_advice(learning_rate)}"
        )
    if losses.mean() > _DIVERGED_LOSS:
        worst = int(losses.argmax())
        raise TrainingDiverged(
            f"The mean loss of epoch {epoch} is {losses.mean():.1f}, more than three times the loss of guessing. "
            f"The largest, {losses[worst]:.1f}, is that of step {steps_before + worst + 1}. {_advice(learning_rate)}"
        )


def check_outcome(
    epoch: int, step: int, network: NeuralNetwork, validation_loss: float | None, learning_rate: float
) -> None:
    """Check the weights and the validation loss after an epoch, since no step's loss shows what the last step did.

    Args:
        epoch: number of the epoch, from 1.
        step: number of its last step in the run, from 1.
        network: the network to keep.
        validation_loss: its loss on the validation images, if any.
        learning_rate: peak learning rate of the run, for the error message.

    Raises:
        TrainingDiverged: a weight or the validation loss is not finite.
    """
    if not torch.stack([parameter.isfinite().all() for parameter in network.parameters()]).all():
        raise TrainingDiverged(
            f"The weights are not all finite after epoch {epoch}, step {step}. {_advice(learning_rate)}"
        )
    if validation_loss is not None and not math.isfinite(validation_loss):
        raise TrainingDiverged(
            f"The validation loss became {validation_loss} in epoch {epoch}, step {step}. {_advice(learning_rate)}"
        )


def _advice(learning_rate: float) -> str:
    return f"Lower the learning rate ({learning_rate}) or look at the data."
