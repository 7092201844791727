"""Loss and accuracy on validation images, computed by all ranks together after each epoch."""

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork, compute_logits
from fmnist_model.training.augmentation import scale
from fmnist_model.training.ranks import Ranks

_BATCH_SIZE = 1024


class ValidationSet:
    """Validation images on the device, of which each rank evaluates a slice."""

    def __init__(self, data: LabelledImages, ranks: Ranks, device: torch.device) -> None:
        """Move the images to the device.

        Args:
            data: at least one image, the same on every rank.
            ranks: the ranks that evaluate together.
            device: where to evaluate.
        """
        self._images: Tensor = torch.from_numpy(data.images).to(device)
        self._labels: Tensor = torch.from_numpy(data.labels).to(device)
        self._ranks = ranks

    def evaluate(self, network: NeuralNetwork) -> tuple[float, float]:
        """Return the mean loss, in nats, and the accuracy, 0 to 1, over all ranks. All ranks must call this together.

        Args:
            network: on the images' device. It is switched to evaluation mode.
        """
        own = self._ranks.own_slice(len(self._labels))
        network = network.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self._labels.device)
        with torch.inference_mode():
            for first in range(own.start, own.stop, _BATCH_SIZE):
                batch = slice(first, min(first + _BATCH_SIZE, own.stop))
                logits = compute_logits(network, scale(self._images[batch]))
                totals[0] += functional.cross_entropy(logits, self._labels[batch], reduction="sum")
                totals[1] += logits.argmax(1).eq(self._labels[batch]).sum()
        self._ranks.sum(totals)
        loss, accuracy = (totals / len(self._labels)).tolist()
        return loss, accuracy
