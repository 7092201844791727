"""`describe` agrees with the tutorial's code and with NumPy in float64."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmnist_model.description import Description, describe
from fmnist_model.network import NeuralNetwork
from tests.unit.fmnist_model.rigged_description import rigged_description, rigged_network
from tests.unit.fmnist_model.tutorial_network import TutorialNetwork

LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


class OtherNetwork(nn.Module):
    """A network with the same interface and other layers: a reused in-place ReLU, dropout and a nested module."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        self.relu = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(4 * 26 * 26, 16)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.body(x[:, None]))
        x = self.relu(self.hidden(x))
        return self.head(self.dropout(x))


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (3, 28, 28), np.uint8)


@pytest.fixture
def network() -> NeuralNetwork:
    torch.manual_seed(7)
    network = NeuralNetwork()
    with torch.no_grad():
        # The two ReLUs zero different shares, both far from 1/2, and the probabilities are far from 1/10.
        network.linear_relu_stack[0].bias -= 0.25
        network.linear_relu_stack[2].bias += 0.1
        network.linear_relu_stack[4].weight *= 60
    return network


@pytest.fixture
def description(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> Description:
    return describe(network, pixels, ["a.png", "b.png", "c.png"], "a test", "cpu")


def numpy_activations(network: nn.Module, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """The network's activations before each ReLU and its logits, computed in float64."""
    state = {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}

    def linear(x: NDArray[np.float64], number: int) -> NDArray[np.float64]:
        stack = f"linear_relu_stack.{number}"
        return x @ state[f"{stack}.weight"].T + state[f"{stack}.bias"]

    first = linear(pixels.reshape(len(pixels), 784) / 255.0, 0)
    second = linear(np.maximum(first, 0), 2)
    return {"first": first, "second": second, "logits": linear(np.maximum(second, 0), 4)}


# Layers


def test_layers_have_the_tutorials_names_kinds_and_shapes(description: Description) -> None:
    assert description.input_shape == (3, 28, 28)
    assert [(layer.name, layer.kind, layer.input_shape, layer.output_shape) for layer in description.layers] == [
        ("flatten", "Flatten", (3, 28, 28), (3, 784)),
        ("linear_relu_stack.0", "Linear", (3, 784), (3, 512)),
        ("linear_relu_stack.1", "ReLU", (3, 512), (3, 512)),
        ("linear_relu_stack.2", "Linear", (3, 512), (3, 512)),
        ("linear_relu_stack.3", "ReLU", (3, 512), (3, 512)),
        ("linear_relu_stack.4", "Linear", (3, 512), (3, 10)),
    ]


def test_zeroed_share_is_the_share_of_activations_below_zero(
    description: Description, network: NeuralNetwork, pixels: NDArray[np.uint8]
) -> None:
    activations = numpy_activations(network, pixels)
    expected = [(activations[name] <= 0).mean() for name in ("first", "second")]
    found = [layer.zeroed_share for layer in description.layers if layer.kind == "ReLU"]
    # One of 1,536 activations may be so near zero that float32 and float64 disagree about its sign.
    assert found == pytest.approx(expected, abs=1.5 / 1536)
    assert expected[0] > 0.6, "the test must distinguish zeroed from kept activations"
    assert expected[1] < 0.4, "the test must distinguish the two ReLUs"


def test_only_a_relu_has_a_zeroed_share(description: Description) -> None:
    assert {layer.kind for layer in description.layers if layer.zeroed_share is None} == {"Flatten", "Linear"}


def test_layers_of_another_network_are_in_the_order_in_which_they_run(pixels: NDArray[np.uint8]) -> None:
    description = describe(OtherNetwork(), pixels, ["a", "b", "c"], "a test", "cpu")
    assert [(layer.name, layer.output_shape) for layer in description.layers] == [
        ("body.0", (3, 4, 26, 26)),
        ("body.1", (3, 2704)),
        ("relu", (3, 2704)),
        ("hidden", (3, 16)),
        ("relu", (3, 16)),
        ("dropout", (3, 16)),
        ("head", (3, 10)),
    ]


# Predictions


def test_logits_are_those_of_the_tutorials_code(
    description: Description, network: NeuralNetwork, pixels: NDArray[np.uint8]
) -> None:
    tutorial = TutorialNetwork()
    tutorial.load_state_dict(network.state_dict())
    logits = tutorial(torch.tensor(pixels) / 255)
    assert torch.allclose(torch.tensor([image.logits for image in description.images]), logits, atol=1e-4)


def test_probabilities_are_the_softmax_of_the_logits(
    description: Description, network: NeuralNetwork, pixels: NDArray[np.uint8]
) -> None:
    exponentials = np.exp(numpy_activations(network, pixels)["logits"])
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([image.probabilities for image in description.images], expected, atol=1e-5)
    assert np.ptp(expected) > 0.3, "the test needs different probabilities"


def test_predicted_class_is_the_most_probable_and_confidence_its_probability(
    description: Description, network: NeuralNetwork, pixels: NDArray[np.uint8]
) -> None:
    winners = numpy_activations(network, pixels)["logits"].argmax(axis=1).tolist()
    assert [image.predicted_class for image in description.images] == winners
    for image in description.images:
        assert image.confidence == image.probabilities[image.predicted_class] == max(image.probabilities)


@pytest.mark.parametrize("winner", range(10))
def test_predicted_label_is_the_name_of_the_class(winner: int) -> None:
    image = rigged_description(1, winner=winner, confidence=0.5).images[0]
    assert (image.predicted_class, image.predicted_label) == (winner, LABELS[winner])


def test_images_keep_names_and_order(description: Description) -> None:
    assert [image.name for image in description.images] == ["a.png", "b.png", "c.png"]


def test_temperature_divides_the_logits_of_the_softmax(
    network: NeuralNetwork, pixels: NDArray[np.uint8], description: Description
) -> None:
    tempered = describe(network, pixels, ["a.png", "b.png", "c.png"], "a test", "cpu", temperature=2.5)
    for plain, image in zip(description.images, tempered.images, strict=True):
        expected = np.exp(np.array(plain.logits) / 2.5)
        assert (image.logits, image.predicted_class) == (plain.logits, plain.predicted_class)
        assert image.probabilities == pytest.approx(expected / expected.sum(), rel=1e-5)
        assert image.confidence == max(image.probabilities) < plain.confidence
    assert tempered.to_json()["temperature"] == 2.5


def test_dropout_is_off(pixels: NDArray[np.uint8]) -> None:
    network = OtherNetwork().train()
    one, other = (describe(network, pixels, ["a", "b", "c"], "a test", "cpu") for _ in range(2))
    assert one.images == other.images


# The network


def test_parameters_are_counted(description: Description) -> None:
    assert [(one.name, one.shape, one.count) for one in description.parameters] == [
        ("linear_relu_stack.0.weight", (512, 784), 401_408),
        ("linear_relu_stack.0.bias", (512,), 512),
        ("linear_relu_stack.2.weight", (512, 512), 262_144),
        ("linear_relu_stack.2.bias", (512,), 512),
        ("linear_relu_stack.4.weight", (10, 512), 5_120),
        ("linear_relu_stack.4.bias", (10,), 10),
    ]
    assert description.total_parameters == 669_706


def test_first_values_are_those_of_the_state_dict(description: Description, network: NeuralNetwork) -> None:
    expected = {name: tuple(tensor.reshape(-1).tolist()[:5]) for name, tensor in network.state_dict().items()}
    assert {one.name: one.first_values for one in description.parameters} == expected


def test_description_has_device_origin_and_structure(description: Description, network: NeuralNetwork) -> None:
    assert (description.device, description.origin) == ("cpu", "a test")
    assert description.structure == str(network)


def test_description_without_images_has_structure_and_parameters(
    network: NeuralNetwork, description: Description
) -> None:
    empty = describe(network, np.empty((0, 28, 28), np.uint8), [], "a test", "cpu")
    assert (empty.input_shape, empty.layers, empty.images) == (None, (), ())
    assert (empty.structure, empty.parameters) == (description.structure, description.parameters)
    assert empty.total_parameters == 669_706


def test_describing_leaves_the_network_unchanged(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> None:
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    describe(network, pixels, ["a", "b", "c"], "a test", "cpu")
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


# JSON


def test_json_survives_a_round_trip(description: Description) -> None:
    fields = description.to_json()
    assert json.loads(json.dumps(fields)) == fields
    assert fields["class_names"] == LABELS
    assert fields["layers"][0]["output_shape"] == [3, 784]
    assert fields["images"][2]["logits"] == list(description.images[2].logits)


def test_json_has_null_for_numbers_that_are_not_finite(pixels: NDArray[np.uint8]) -> None:
    network = rigged_network([float("inf")] + [0.0] * 9)
    fields = describe(network, pixels[:1], ["a"], "a test", "cpu").to_json()
    json.dumps(fields, allow_nan=False)
    assert fields["images"][0]["logits"] == [None] + [0.0] * 9


# Refused input


def test_wrong_number_of_names_is_refused(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="2 names for 3 images"):
        describe(network, pixels, ["a", "b"], "a test", "cpu")


@pytest.mark.parametrize("wrong", [np.zeros((1, 28, 28), np.float32), np.zeros((1, 28, 27), np.uint8)])
def test_pixels_of_another_shape_or_type_are_refused(network: NeuralNetwork, wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=rf"{wrong.dtype} .*uint8 \[n, 28, 28\]"):
        describe(network, wrong, ["a"], "a test", "cpu")


def test_network_with_another_number_of_classes_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"\[3, 7\].*\[3, 10\]"):
        describe(nn.Sequential(nn.Flatten(), nn.Linear(784, 7)), pixels, ["a", "b", "c"], "a test", "cpu")
