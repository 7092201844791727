"""Weights as safetensors: checked without PyTorch, before anything is started with them."""

import numpy as np

from fmnist_model.errors import InvalidWeights

PARAMETER_SHAPES = {
    "linear_relu_stack.0.weight": (512, 784),
    "linear_relu_stack.0.bias": (512,),
    "linear_relu_stack.2.weight": (512, 512),
    "linear_relu_stack.2.bias": (512,),
    "linear_relu_stack.4.weight": (10, 512),
    "linear_relu_stack.4.bias": (10,),
}
"""Of `NeuralNetwork`, by the names in its state dict."""


def check_weights(data: bytes, origin: str) -> None:
    """Make sure that a safetensors file holds weights of `NeuralNetwork`; nothing in the file can be executed.

    Args:
        data: the file's bytes.
        origin: where they come from, for messages.

    Raises:
        InvalidWeights: the file is no safetensors, or holds tensors of other names or shapes, or values that are not
            finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        state = load(data)
    except KeyError as error:  # of safetensors' table of types
        raise InvalidWeights(f"{origin} has tensors of type {error}; expected float32.") from None
    except (SafetensorError, ValueError, TypeError) as error:
        raise InvalidWeights(f"{origin} is no safetensors file: {error}.") from None
    for name in sorted(PARAMETER_SHAPES.keys() | state.keys()):
        if name not in state:
            raise InvalidWeights(f"{origin} holds weights of another network: {name} is missing.")
        if name not in PARAMETER_SHAPES:
            raise InvalidWeights(f"{origin} holds weights of another network: {name} is none of its tensors.")
        if state[name].shape != PARAMETER_SHAPES[name]:
            raise InvalidWeights(
                f"{origin} holds weights of another network: {name} has shape {list(state[name].shape)} instead of "
                f"{list(PARAMETER_SHAPES[name])}."
            )
        if state[name].dtype.kind != "f":
            raise InvalidWeights(f"{origin}: {name} is of type {state[name].dtype}; expected float32.")
        if not np.isfinite(state[name]).all():
            raise InvalidWeights(f"{origin}: {name} has values that are not finite.")
