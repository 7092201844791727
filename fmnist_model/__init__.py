"""The Fashion-MNIST network, its data, its training step and its classifier: PyTorch and Arrow alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_model.network import NeuralNetwork

__all__ = ["NeuralNetwork"]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import; decoding and planning need none of it.
    if name == "NeuralNetwork":
        from fmnist_model.network import NeuralNetwork

        return NeuralNetwork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
