"""Describe a network and what each of its layers does to a few images, like PyTorch's tutorial.

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
"""Values to show of each parameter."""


@dataclass(frozen=True)
class LayerDescription:
    """What one layer did to the batch."""

    name: str
    """Name in the network's state dict, such as `linear_relu_stack.0`."""
    kind: str
    """Name of the layer's class, such as `Linear`."""
    input_shape: tuple[int, ...]
    """`[n, …]`."""
    output_shape: tuple[int, ...]
    """`[n, …]`."""
    zeroed_share: float | None
    """Share of the batch's activations that are zero after a ReLU, 0 to 1. None for other layers."""


@dataclass(frozen=True)
class ImageDescription:
    """The network's prediction for one image."""

    name: str
    logits: tuple[float, ...]
    """`[10]`, in class order."""
    probabilities: tuple[float, ...]
    """`[10]`, in class order: softmax of the logits divided by the temperature."""
    predicted_class: int
    """Number of the most probable class, 0 to 9."""
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
    """The first five values in row-major order, or all values if there are fewer."""


@dataclass(frozen=True)
class Description:
    """A network and its predictions for a batch of images."""

    origin: str
    """Where the weights come from."""
    device: str
    """Device of the forward pass, such as `cpu`, `cuda` or `cuda:1`."""
    structure: str
    """The network as PyTorch prints it, in several lines."""
    temperature: float
    """Divisor of the logits before the softmax."""
    input_shape: tuple[int, ...] | None
    """Shape of the batch, `[n, 28, 28]`. None without images."""
    layers: tuple[LayerDescription, ...]
    """Layers in the order in which they ran. Empty without images."""
    images: tuple[ImageDescription, ...]
    """`n` predictions, in the order of the batch."""
    parameters: tuple[ParameterDescription, ...]
    total_parameters: int
    """Number of values in all parameters."""

    def to_json(self) -> dict[str, Any]:
        """Convert to dicts, lists, numbers and strings. Infinities and NaN, which JSON lacks, become None."""
        fields: dict[str, Any] = _jsonable(dataclasses.asdict(self))
        return {"class_names": list(CLASS_NAMES), **fields}


def describe(
    network: nn.Module,
    pixels: NDArray[np.uint8],
    image_names: Sequence[str],
    origin: str,
    device: torch.device | str,
    *,
    temperature: float = 1.0,
) -> Description:
    """Run a network on a batch of images and record what each layer does.

    Args:
        network: a network from float `[n, 28, 28]`, 0 to 1, to logits `[n, 10]`. It is not changed: a copy runs on the
            device in evaluation mode, with dropout off.
        pixels: images, uint8 `[n, 28, 28]`, 0 black to 255 white. Pass no images to describe only structure and
            parameters.
        image_names: `n` names to show.
        origin: where the weights come from, to show.
        device: where to run.
        temperature: divisor of the logits before the softmax (Guo et al., arXiv:1706.04599).

    Raises:
        ValueError: `pixels` has another shape or type, the number of names differs from the number of images, or the
            network does not return logits `[n, 10]`.
    """
    n = len(pixels)
    if pixels.dtype != np.uint8 or pixels.shape != (n, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"The images are {pixels.dtype} {list(pixels.shape)} instead of uint8 [n, 28, 28].")
    if len(image_names) != n:
        raise ValueError(f"There are {len(image_names)} names for {n} images. Pass one name per image.")
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
    """Append each module that runs to `layers`, except modules that contain others."""
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
        # Count zeros in the output, since a ReLU with inplace=True has overwritten its input.
        zeroed_share = (output == 0).double().mean().item() if isinstance(module, nn.ReLU) else None
        kind = type(module).__name__
        layers.append(LayerDescription(name, kind, tuple(inputs[0].shape), tuple(output.shape), zeroed_share))

    return record


def _describe_images(logits: Tensor, names: Sequence[str], temperature: float) -> tuple[ImageDescription, ...]:
    if logits.shape != (len(names), len(CLASS_NAMES)):
        raise ValueError(f"The network returned {list(logits.shape)} instead of logits [{len(names)}, 10].")
    probabilities = (logits / temperature).softmax(1)
    # Take the class from the logits, since the temperature may round two probabilities to the same number.
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
