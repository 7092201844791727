"""Define, train and apply the image classifier, with no dependency on Ray, Prefect or boto3."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_model.network import NeuralNetwork

__all__ = ["NeuralNetwork"]


def __getattr__(name: str) -> Any:
    # Importing PyTorch takes seconds, and decoding and planning don't need it.
    if name == "NeuralNetwork":
        from fmnist_model.network import NeuralNetwork

        return NeuralNetwork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
