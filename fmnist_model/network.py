"""The network of PyTorch's "Build the Neural Network" tutorial, and its weights as safetensors.

Source: https://pytorch.org/tutorials/beginner/basics/buildmodel_tutorial.html
"""

from typing import Any

import torch
from torch import Tensor, nn

from fmnist_model.errors import InvalidWeights


class NeuralNetwork(nn.Module):
    """A multilayer perceptron 784-512-512-10 with ReLU.

    Its state dict has the tutorial's keys (`linear_relu_stack.0.weight` and so on), so that weights load either way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: float `[n, 28, 28]` or `[n, 1, 28, 28]`, 0 black to 1 white.

        Returns:
            Logits, `[n, 10]`, in the order of `CLASS_NAMES`.
        """
        x = self.flatten(x)
        logits: Tensor = self.linear_relu_stack(x)
        return logits


def save_weights(network: nn.Module) -> bytes:
    """Serialize a network's weights as safetensors, in float32 and on no device in particular."""
    from safetensors.torch import save

    state = {
        name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in network.state_dict().items()
    }
    return save(state, metadata={"format": "pt"})


def load_weights(data: bytes, origin: str) -> NeuralNetwork:
    """Make a network with the weights in a safetensors file; nothing in the file can be executed.

    Args:
        data: the file's bytes.
        origin: where they come from, for messages.

    Raises:
        InvalidWeights: the file is no safetensors, or holds tensors of other names or shapes, or values that are not
            finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidWeights(f"{origin} is no safetensors file: {error}.") from None
    network = NeuralNetwork()
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        raise InvalidWeights(f"{origin} holds weights of another network: {_difference(expected, found)}.")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise InvalidWeights(f"{origin}: {name} has values that are not finite.")
    network.load_state_dict(state)
    return network.eval()


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is none of its tensors"
        if found[name] != expected[name]:
            return f"{name} has shape {list(found[name])} instead of {list(expected[name])}"
    return "the order of its tensors differs"


def best_device() -> torch.device:
    """The accelerator PyTorch finds, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")
