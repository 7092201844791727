"""Pixels in, predictions out: the network as batch inference uses it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.network import NeuralNetwork
from fmnist_model.predictions import Predictions
from fmnist_model.training.augmentation import scale

_CPU_BATCH = 512
"""Images a forward pass. One thread classifies 125,000 to 133,000 a second in passes of 256 or 512. In passes of 1,024
or more it is 99,000 to 133,000: the allocator may get the memory of each from the kernel anew (1.5 page faults an
image)."""

_ACCELERATOR_BATCH = 65_536
"""Images a forward pass: 51 MB to copy, and more than enough to fill any accelerator."""


class Classifier:
    """A network ready to classify, with the weights it has when the classifier is made.

    On CPUs the weights are oneDNN's: its matrix products use AVX-512 on every CPU that has it, while those of MKL,
    PyTorch's default, do not on AMD's (one thread of an EPYC 9005: 133,000 images a second instead of 68,000). On all
    devices numbers are float32, and no class differs; on a GPU, copying the pixels costs more than the arithmetic.
    """

    def __init__(self, network: NeuralNetwork, device: torch.device, temperature: float = 1.0) -> None:
        """Make a classifier.

        Args:
            network: is moved to the device.
            device: where to run.
            temperature: divides the logits before the softmax (Guo et al., arXiv:1706.04599); it changes probabilities
                and no class.
        """
        self._network = network.to(device).eval()
        self._device = device
        self._temperature = temperature
        self._onednn_weights: dict[str, Tensor] | None = None
        if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            state = network.linear_relu_stack.state_dict()
            self._onednn_weights = {name: tensor.to_mkldnn() for name, tensor in state.items()}

    def classify(self, pixels: NDArray[np.uint8]) -> Predictions:
        """Classify images.

        Args:
            pixels: uint8 `[n, 28, 28]`, 0 black to 255 white.
        """
        batch = _CPU_BATCH if self._device.type == "cpu" else _ACCELERATOR_BATCH
        with torch.inference_mode():
            # Nothing waits for an accelerator before the results of all batches: it works while the next is copied.
            parts = [self._forward(pixels[first : first + batch]) for first in range(0, len(pixels), batch)]
            logits = torch.cat(parts) if parts else torch.empty((0, len(CLASS_NAMES)))
            # Not of the probabilities: the temperature may make two of them round to the same.
            winners, tempered = logits.argmax(1), (logits / self._temperature).softmax(1)
            classes, probabilities = winners.cpu().numpy(), tempered.cpu().numpy()
        confidence = probabilities[np.arange(len(probabilities)), classes]
        return Predictions(classes.astype(np.int8), confidence, probabilities)

    def _forward(self, pixels: NDArray[np.uint8]) -> Tensor:
        # PyTorch warns of arrays that can't be written, as raw pixels from Arrow are.
        images = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
        if self._onednn_weights is not None:
            inputs = scale(images.flatten(1)).to_mkldnn()
            logits: Tensor = functional_call(self._network.linear_relu_stack, self._onednn_weights, inputs).to_dense()
        elif self._device.type == "cuda":
            # Copies from pinned memory need no waiting for; PyTorch keeps the memory until the copy is made.
            logits = self._network(scale(images.pin_memory().to(self._device, non_blocking=True)))
        else:
            logits = self._network(scale(images.to(self._device)))
        return logits
