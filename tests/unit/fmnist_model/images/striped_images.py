"""Toy images that a network learns within seconds, and its weights as one vector."""

import numpy as np
import torch
from torch import Tensor

from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork


def stripes(n: int = 600) -> LabelledImages:
    """Return `n` images of noise with a bright stripe at a height that depends on the class.

    A network learns them within one or two epochs.
    """
    images = np.random.default_rng(0).integers(0, 60, (n, 28, 28), dtype=np.uint8)
    labels = np.arange(n) % 10
    for number, label in enumerate(labels):
        images[number, 2 * label : 2 * label + 4, 4:24] += 150
    return LabelledImages(images, labels.astype(np.int64))


def vector(network: NeuralNetwork) -> Tensor:
    """Return all weights as one vector, detached from the network."""
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()
