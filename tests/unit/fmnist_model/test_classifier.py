"""The classifier predicts what its network predicts, on every device and for any number of images."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fmnist_model.classifier import Classifier
from fmnist_model.network import NeuralNetwork

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Noisy images of two classes, with a bright upper or lower half."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 100, (5_000, 28, 28), dtype=np.uint8)
    upper = rng.random(5_000) < 0.5
    images[upper, :14] += 150
    images[~upper, 14:] += 150
    return images


@pytest.fixture(scope="module")
def network(pixels: NDArray[np.uint8]) -> NeuralNetwork:
    """A network that has learned to separate the two classes, which it calls 3 and 7."""
    torch.manual_seed(0)
    network = NeuralNetwork()
    optimizer = torch.optim.Adam(network.parameters())
    images = torch.from_numpy(pixels[:512]) / 255
    labels = (images[:, 0, 0] > 0.5).long() * 4 + 3
    for _ in range(10):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def expected(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The network's probabilities, computed in double precision."""
    doubled = NeuralNetwork().double()
    doubled.load_state_dict(network.state_dict())
    with torch.inference_mode():
        return doubled(torch.from_numpy(pixels).double() / 255).softmax(1).numpy()


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_classes_are_those_of_the_network_in_double_precision(
    device: torch.device, network: NeuralNetwork, pixels: NDArray[np.uint8], expected: NDArray[np.float64]
):
    predictions = Classifier(network, device).classify(pixels)
    assert set(predictions.classes.tolist()) == {3, 7}
    np.testing.assert_array_equal(predictions.classes, expected.argmax(axis=1))
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-6)
    network.to(CPU)


def test_classes_are_the_same_without_onednn(
    network: NeuralNetwork,
    pixels: NDArray[np.uint8],
    expected: NDArray[np.float64],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    predictions = Classifier(network, CPU).classify(pixels)
    np.testing.assert_array_equal(predictions.classes, expected.argmax(axis=1))
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("temperature", [0.05, 1.7, 20])
def test_temperature_changes_probabilities_but_not_classes(
    device: torch.device, temperature: float, network: NeuralNetwork, pixels: NDArray[np.uint8]
):
    doubled = NeuralNetwork().double()
    doubled.load_state_dict(network.state_dict())
    with torch.inference_mode():
        logits = doubled(torch.from_numpy(pixels).double() / 255)
    predictions = Classifier(network, device, temperature).classify(pixels)
    np.testing.assert_allclose(predictions.probabilities, (logits / temperature).softmax(1), atol=1e-4)
    np.testing.assert_array_equal(predictions.classes, logits.argmax(1))
    np.testing.assert_array_equal(predictions.confidence, predictions.probabilities.max(axis=1))
    network.to(CPU)


def test_temperature_divides_the_logits_without_onednn(
    network: NeuralNetwork, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
):
    with_onednn = Classifier(network, CPU, 1.7).classify(pixels)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    np.testing.assert_allclose(
        Classifier(network, CPU, 1.7).classify(pixels).probabilities, with_onednn.probabilities, atol=1e-6
    )


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_class_is_that_of_the_logits_if_two_probabilities_round_to_the_same(device: torch.device):
    network = NeuralNetwork()
    with torch.no_grad():
        network.linear_relu_stack[4].weight.zero_()
        network.linear_relu_stack[4].bias.zero_()
        network.linear_relu_stack[4].bias[2] = 1.0
        network.linear_relu_stack[4].bias[6] = 1 + 2**-23  # the next float32
    predictions = Classifier(network, device, 20).classify(np.zeros((3, 28, 28), np.uint8))
    np.testing.assert_array_equal(predictions.probabilities[:, 2], predictions.probabilities[:, 6])
    assert predictions.classes.tolist() == [6, 6, 6]


@pytest.mark.parametrize("n", [1, 511, 512, 513, 5_000])
def test_images_are_classified_in_order_across_batches(
    n: int, network: NeuralNetwork, pixels: NDArray[np.uint8], expected: NDArray[np.float64]
):
    predictions = Classifier(network, CPU).classify(pixels[:n])
    assert predictions.probabilities.dtype == np.float32
    np.testing.assert_array_equal(predictions.classes, expected[:n].argmax(axis=1))


def test_same_images_give_exactly_the_same_probabilities(network: NeuralNetwork, pixels: NDArray[np.uint8]):
    first, second = (Classifier(network, CPU).classify(pixels).probabilities for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_classifying_leaves_the_network_unchanged(network: NeuralNetwork, pixels: NDArray[np.uint8]):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Classifier(network, CPU).classify(pixels[:10])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network(torch.from_numpy(pixels[:10]) / 255).shape == (10, 10)
