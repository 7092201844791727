"""A network that predicts the same for every image, and its description."""

import numpy as np
import torch

from fmnist_model.description import Description, describe
from fmnist_model.network import NeuralNetwork


def rigged_network(logits: list[float]) -> NeuralNetwork:
    """A network that returns these logits for every image."""
    network = NeuralNetwork()
    with torch.no_grad():
        network.linear_relu_stack[4].weight.zero_()
        network.linear_relu_stack[4].bias.copy_(torch.tensor(logits))
    return network


def rigged_description(n: int, *, winner: int, confidence: float) -> Description:
    """Description of `n` black images that are all predicted as class `winner` with this confidence."""
    logits = [0.0] * 10
    logits[winner] = float(np.log(9 * confidence / (1 - confidence)))
    pixels = np.zeros((n, 28, 28), np.uint8)
    return describe(rigged_network(logits), pixels, [f"{number}.png" for number in range(n)], "a test", "cpu")
