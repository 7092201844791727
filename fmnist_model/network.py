"""The network of PyTorch's "Build the Neural Network" tutorial, and its weights as safetensors.

Source: https://pytorch.org/tutorials/beginner/basics/buildmodel_tutorial.html
"""

import torch
from torch import Tensor, nn

from fmnist_model.weights import check_weights


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


def logits_of(network: NeuralNetwork, images: Tensor) -> Tensor:
    """What `network(images)` returns, by the matrix products that the device is best at; gradients flow.

    On CPUs these are oneDNN's: they use AVX-512 wherever there is any, while those of MKL, PyTorch's default, do not on
    AMD's. One thread of an EPYC 9005 trains on 45,000 images a second instead of 28,000.
    """
    on_cpu = images.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if on_cpu and len(images):
        logits: Tensor = network.linear_relu_stack(network.flatten(images).to_mkldnn()).to_dense()
    else:
        logits = network(images)
    return logits


def save_weights(network: nn.Module) -> bytes:
    """Serialize a network's weights as safetensors, in float32 and on no device in particular."""
    from safetensors.torch import save

    state = {
        name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in network.state_dict().items()
    }
    data: bytes = save(state, metadata={"format": "pt"})
    return data


def load_weights(data: bytes, origin: str) -> NeuralNetwork:
    """Make a network with the weights in a safetensors file, ready to classify.

    Args:
        data: the file's bytes.
        origin: where they come from, for messages.

    Raises:
        InvalidWeights: as `check_weights` says.
    """
    from safetensors.torch import load

    check_weights(data, origin)
    network = NeuralNetwork()
    network.load_state_dict(load(data))
    return network.eval()


def best_device() -> torch.device:
    """The accelerator PyTorch finds, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")
