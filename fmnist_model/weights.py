"""Check weights in safetensors files without importing PyTorch."""

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
"""Shape of each tensor in the state dict of `NeuralNetwork`."""


def check_weights(data: bytes, origin: str) -> None:
    """Check that a safetensors file holds finite weights of `NeuralNetwork`.

    Loading executes nothing from the file.

    Args:
        data: the file's bytes.
        origin: URI of the file, for error messages.

    Raises:
        InvalidWeights: the file isn't in safetensors format, or a tensor has an unexpected name, shape or type, or a
            value that isn't finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        state = load(data)
    except KeyError as error:  # raised by safetensors for a type that NumPy lacks
        raise InvalidWeights(f"{origin} has tensors of type {error}. Expected float32.") from None
    except (SafetensorError, ValueError, TypeError) as error:
        raise InvalidWeights(f"{origin} is not a safetensors file: {error}.") from None
    for name in sorted(PARAMETER_SHAPES.keys() | state.keys()):
        if name not in state:
            raise InvalidWeights(f"{origin} holds weights of another network: it lacks {name}.")
        if name not in PARAMETER_SHAPES:
            raise InvalidWeights(f"{origin} holds weights of another network: it has the unknown tensor {name}.")
        if state[name].shape != PARAMETER_SHAPES[name]:
            raise InvalidWeights(
                f"{origin} holds weights of another network: {name} has shape {list(state[name].shape)} instead of "
                f"{list(PARAMETER_SHAPES[name])}."
            )
        if state[name].dtype.kind != "f":
            raise InvalidWeights(f"{origin}: {name} is of type {state[name].dtype}. Expected float32.")
        if not np.isfinite(state[name]).all():
            raise InvalidWeights(f"{origin}: {name} has values that are not finite.")
