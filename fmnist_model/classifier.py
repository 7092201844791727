"""Classify pixels, as batch inference does."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.network import NeuralNetwork
from fmnist_model.predictions import Predictions
from fmnist_model.training.augmentation import scale

_CPU_BATCH_SIZE = 512
"""Images per forward pass. One thread classifies 125,000 to 133,000 images per second in passes of 256 or 512, and
99,000 to 133,000 in passes of 1,024 or more. There the allocator may request memory from the kernel in every pass (1.5
page faults per image)."""

_ACCELERATOR_BATCH_SIZE = 65_536
"""Images per forward pass: 51 MB to copy, and more than enough to fill any accelerator."""


class Classifier:
    """A network prepared for inference. Later changes of the network's weights may not reach the classifier.

    On CPUs it uses oneDNN's matrix products, which use AVX-512 on every CPU that has it. MKL, PyTorch's default,
    doesn't use it on AMD CPUs. With oneDNN, one thread of an EPYC 9005 classifies 133,000 images per second instead of
    68,000.

    All devices compute in float32 and predict the same classes. Lower precision would gain nothing on a GPU, where
    copying the pixels takes longer than the arithmetic.
    """

    def __init__(self, network: NeuralNetwork, device: torch.device, temperature: float = 1.0) -> None:
        """Move the network to the device and prepare its weights.

        Args:
            network: the network to use. It is moved to the device.
            device: where to run.
            temperature: divisor of the logits before the softmax (Guo et al., arXiv:1706.04599). It changes
                probabilities, but not predicted classes.
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
            pixels: images, uint8 `[n, 28, 28]`, 0 black to 255 white.
        """
        size = _CPU_BATCH_SIZE if self._device.type == "cpu" else _ACCELERATOR_BATCH_SIZE
        with torch.inference_mode():
            # Don't wait for an accelerator here, so that it computes one batch while the next is copied.
            parts = [self._forward(pixels[first : first + size]) for first in range(0, len(pixels), size)]
            logits = torch.cat(parts) if parts else torch.empty((0, len(CLASS_NAMES)))
            # Take the classes from the logits, since the temperature may round two probabilities to the same number.
            winners, tempered = logits.argmax(1), (logits / self._temperature).softmax(1)
            classes, probabilities = winners.cpu().numpy(), tempered.cpu().numpy()
        confidence = probabilities[np.arange(len(probabilities)), classes]
        return Predictions(classes.astype(np.int8), confidence, probabilities)

    def _forward(self, pixels: NDArray[np.uint8]) -> Tensor:
        # PyTorch warns about read-only arrays, and raw pixels from Arrow are read-only.
        images = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
        if self._onednn_weights is not None:
            inputs = scale(images.flatten(1)).to_mkldnn()
            logits: Tensor = functional_call(self._network.linear_relu_stack, self._onednn_weights, inputs).to_dense()
        elif self._device.type == "cuda":
            # A copy from pinned memory can be asynchronous. PyTorch keeps the memory until it is finished.
            logits = self._network(scale(images.pin_memory().to(self._device, non_blocking=True)))
        else:
            logits = self._network(scale(images.to(self._device)))
        return logits
