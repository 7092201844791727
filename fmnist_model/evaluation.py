"""How well a network classifies labelled images."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fmnist_model.augmentation import scale
from fmnist_model.classes import CLASS_NAMES
from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork

_BATCH = 4096


@dataclass(frozen=True)
class Evaluation:
    """A network's results on labelled images."""

    images: int
    correct: int
    log_loss: float
    """Mean negative log-likelihood of the true class, in nats."""
    confusion: NDArray[np.int64]
    """`[10, 10]`: rows are true classes, columns predicted ones."""

    @property
    def accuracy(self) -> float:
        """Share of the images whose most probable class is the true one."""
        return self.correct / self.images

    @property
    def recall(self) -> dict[str, float]:
        """Share of each class's images that were found, by class name; NaN for a class without images."""
        return _by_class(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def precision(self) -> dict[str, float]:
        """Share of the images given each class that belong to it, by class name; NaN for a class never predicted."""
        return _by_class(self.confusion.diagonal(), self.confusion.sum(axis=0))


def _by_class(part: NDArray[np.int64], whole: NDArray[np.int64]) -> dict[str, float]:
    shares = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return dict(zip(CLASS_NAMES, shares.tolist(), strict=True))


def evaluate(network: NeuralNetwork, data: LabelledImages, device: torch.device) -> Evaluation:
    """Classify all images and compare with their labels."""
    network = network.to(device).eval()
    confusion = torch.zeros(len(CLASS_NAMES) ** 2, dtype=torch.int64, device=device)
    log_loss = torch.zeros((), dtype=torch.float64, device=device)
    with torch.inference_mode():
        for first in range(0, len(data), _BATCH):
            images = torch.from_numpy(data.images[first : first + _BATCH]).to(device)
            labels = torch.from_numpy(data.labels[first : first + _BATCH]).to(device)
            logits = network(scale(images))
            log_loss += functional.cross_entropy(logits, labels, reduction="sum")
            confusion += torch.bincount(labels * len(CLASS_NAMES) + logits.argmax(1), minlength=len(confusion))
    matrix = confusion.reshape(len(CLASS_NAMES), len(CLASS_NAMES)).cpu().numpy()
    return Evaluation(
        images=len(data),
        correct=int(matrix.trace()),
        log_loss=log_loss.item() / len(data),
        confusion=matrix,
    )
