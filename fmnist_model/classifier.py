"""Pixels in, predictions out: the network as batch inference uses it."""

import numpy as np
import torch
from numpy.typing import NDArray

from fmnist_model.augmentation import scale
from fmnist_model.classes import CLASS_NAMES
from fmnist_model.network import NeuralNetwork
from fmnist_model.predictions import Predictions

_BATCH = 4096
"""Images a forward pass: 4,096 keep the activations of both hidden layers within a few caches."""


class Classifier:
    """A network ready to classify."""

    def __init__(self, network: NeuralNetwork, device: torch.device) -> None:
        self._network = network.to(device).eval()
        self._device = device

    def classify(self, pixels: NDArray[np.uint8]) -> Predictions:
        """Classify images.

        Args:
            pixels: uint8 `[n, 28, 28]`, 0 black to 255 white.
        """
        parts = []
        with torch.inference_mode():
            for first in range(0, len(pixels), _BATCH):
                # PyTorch warns of arrays that can't be written, as raw pixels from Arrow are.
                batch = np.require(pixels[first : first + _BATCH], requirements=("C", "W"))
                parts.append(self._network(scale(torch.from_numpy(batch).to(self._device))).softmax(1))
            probabilities = torch.cat(parts).cpu().numpy() if parts else np.empty((0, len(CLASS_NAMES)), np.float32)
        classes = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(probabilities)), classes]
        return Predictions(classes.astype(np.int8), confidence, probabilities)
