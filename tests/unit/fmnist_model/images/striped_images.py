"""Images on which training can be tried within seconds, and a network's weights as one vector."""

import numpy as np
import torch
from torch import Tensor

from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork


def stripes(n: int = 600) -> LabelledImages:
    """Noise with a bright stripe whose height tells the class: learned within an epoch or two."""
    images = np.random.default_rng(0).integers(0, 60, (n, 28, 28), dtype=np.uint8)
    labels = np.arange(n) % 10
    for number, label in enumerate(labels):
        images[number, 2 * label : 2 * label + 4, 4:24] += 150
    return LabelledImages(images, labels.astype(np.int64))


def vector(network: NeuralNetwork) -> Tensor:
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()
