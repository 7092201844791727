"""What a network is, and what it makes of a few images, layer by layer: the walk of PyTorch's tutorial.

Source: https://pytorch.org/tutorials/beginner/basics/buildmodel_tutorial.html
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmnist_model.classes import CLASS_NAMES, IMAGE_SIZE
from fmnist_model.training.augmentation import scale

_FIRST_VALUES = 5
"""So many values of a parameter are told."""


@dataclass(frozen=True)
class LayerDescription:
    """What one layer did to the batch."""

    name: str
    """As in the network's state dict: `linear_relu_stack.0`."""
    kind: str
    """Name of its class: `Linear`."""
    input_shape: tuple[int, ...]
    """`[n, …]`."""
    output_shape: tuple[int, ...]
    """`[n, …]`."""
    zeroed_share: float | None
    """Of a ReLU: the share of the batch's activations that are zero after it, 0 to 1. Of any other layer: None."""


@dataclass(frozen=True)
class ImageDescription:
    """What the network makes of one image."""

    name: str
    logits: tuple[float, ...]
    """`[10]`, in class order."""
    probabilities: tuple[float, ...]
    """`[10]`, softmax of the logits over the temperature."""
    predicted_class: int
    """0 to 9."""
    predicted_label: str
    """Name of the predicted class."""
    confidence: float
    """Probability of the predicted class."""


@dataclass(frozen=True)
class ParameterDescription:
    """One tensor of weights or biases."""

    name: str
    shape: tuple[int, ...]
    count: int
    """Number of values."""
    first_values: tuple[float, ...]
    """The first five in row-major order, or all where there are fewer."""


@dataclass(frozen=True)
class Description:
    """A network, and what it makes of a batch of images."""

    origin: str
    """Where the weights come from."""
    device: str
    """What the forward pass ran on: `cpu`, `cuda`, `cuda:1`."""
    structure: str
    """As PyTorch prints it; several lines."""
    temperature: float
    """By which logits are divided before the softmax."""
    input_shape: tuple[int, ...] | None
    """Of the batch, `[n, 28, 28]`; None without images."""
    layers: tuple[LayerDescription, ...]
    """In the order in which they ran; empty without images."""
    images: tuple[ImageDescription, ...]
    """`n`, in the order of the batch."""
    parameters: tuple[ParameterDescription, ...]
    total_parameters: int
    """Number of values in all parameters."""

    def to_json(self) -> dict[str, Any]:
        """The same as dicts, lists, numbers and strings; a number that is not finite, which JSON lacks, is None."""
        figures: dict[str, Any] = _jsonable(dataclasses.asdict(self))
        return {"class_names": list(CLASS_NAMES), **figures}


def describe(
    network: nn.Module,
    pixels: NDArray[np.uint8],
    image_names: Sequence[str],
    origin: str,
    device: torch.device | str,
    *,
    temperature: float = 1.0,
) -> Description:
    """Run a network on a batch of images and tell what happens at each layer.

    Args:
        network: takes float `[n, 28, 28]`, 0 to 1, and returns logits `[n, 10]`. It stays as it is: a copy moves to
            the device, and runs as in classification (dropout off).
        pixels: uint8 `[n, 28, 28]`, 0 black to 255 white; `n` may be 0, for structure and parameters alone.
        image_names: `n`, for people.
        origin: where the weights come from, for people.
        device: where to run.
        temperature: divides the logits before the softmax (Guo et al., arXiv:1706.04599).

    Raises:
        ValueError: `pixels` has another shape or type, there are more or fewer names than images, or the network
            returns something else than logits `[n, 10]`.
    """
    n = len(pixels)
    if pixels.dtype != np.uint8 or pixels.shape != (n, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"images are {pixels.dtype} {list(pixels.shape)} instead of uint8 [n, 28, 28].")
    if len(image_names) != n:
        raise ValueError(f"{len(image_names)} names for {n} images.")
    device = torch.device(device)
    network = copy.deepcopy(network).to(device).eval()
    layers: list[LayerDescription] = []
    images: tuple[ImageDescription, ...] = ()
    if n:
        with torch.inference_mode(), _recording(network, layers):
            logits = network(scale(torch.from_numpy(np.ascontiguousarray(pixels)).to(device)))
        images = _describe_images(logits, image_names, temperature)
    parameters = tuple(_describe_parameter(name, tensor) for name, tensor in network.named_parameters())
    return Description(
        origin=origin,
        device=str(device),
        structure=str(network),
        temperature=temperature,
        input_shape=tuple(pixels.shape) if n else None,
        layers=tuple(layers),
        images=images,
        parameters=parameters,
        total_parameters=sum(parameter.count for parameter in parameters),
    )


@contextmanager
def _recording(network: nn.Module, layers: list[LayerDescription]) -> Iterator[None]:
    """Append to `layers` each module that runs and has no modules inside."""
    hooks = [
        module.register_forward_hook(_recorder(name, layers))
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _recorder(name: str, layers: list[LayerDescription]) -> Any:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # From the output alone, and now: a ReLU with inplace=True has overwritten its input.
        zeroed_share = (output == 0).double().mean().item() if isinstance(module, nn.ReLU) else None
        kind = type(module).__name__
        layers.append(LayerDescription(name, kind, tuple(inputs[0].shape), tuple(output.shape), zeroed_share))

    return record


def _describe_images(logits: Tensor, names: Sequence[str], temperature: float) -> tuple[ImageDescription, ...]:
    if logits.shape != (len(names), len(CLASS_NAMES)):
        raise ValueError(f"the network returned {list(logits.shape)} instead of logits [{len(names)}, 10].")
    probabilities = (logits / temperature).softmax(1)
    # The winner by the logits: the temperature may make two probabilities round to the same.
    rows = zip(names, logits.tolist(), probabilities.tolist(), logits.argmax(1).tolist(), strict=True)
    return tuple(
        ImageDescription(
            name=name,
            logits=tuple(image_logits),
            probabilities=tuple(image_probabilities),
            predicted_class=winner,
            predicted_label=CLASS_NAMES[winner],
            confidence=image_probabilities[winner],
        )
        for name, image_logits, image_probabilities, winner in rows
    )


def _describe_parameter(name: str, tensor: Tensor) -> ParameterDescription:
    first_values = tensor.detach().flatten()[:_FIRST_VALUES].tolist()
    return ParameterDescription(name, tuple(tensor.shape), tensor.numel(), tuple(first_values))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(member) for key, member in value.items()}
    if isinstance(value, tuple):
        return [_jsonable(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
