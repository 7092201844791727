"""Evaluation agrees with the same sums done by hand, in NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.dataset import LabelledImages
from fmnist_model.evaluation import Evaluation, evaluate
from fmnist_model.network import NeuralNetwork

CPU = torch.device("cpu")


def random_data(n: int) -> LabelledImages:
    generator = np.random.default_rng(2)
    return LabelledImages(generator.integers(0, 256, (n, 28, 28), dtype=np.uint8), generator.integers(0, 10, n))


@pytest.fixture(scope="module")
def network() -> NeuralNetwork:
    """Large last weights, so that the predictions spread over several classes."""
    torch.manual_seed(0)
    network = NeuralNetwork()
    with torch.no_grad():
        network.linear_relu_stack[4].weight.mul_(50)
    return network


def logits_by_hand(network: NeuralNetwork, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    state = {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}
    values = images.reshape(len(images), -1) / 255
    for layer in (0, 2, 4):
        values = values @ state[f"linear_relu_stack.{layer}.weight"].T + state[f"linear_relu_stack.{layer}.bias"]
        if layer < 4:
            values = np.maximum(values, 0)
    return values


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    """More images than are classified at a time, and no multiple of them."""
    return random_data(4_100)


@pytest.fixture(scope="module")
def logits(network: NeuralNetwork, data: LabelledImages) -> NDArray[np.float64]:
    return logits_by_hand(network, data.images)


@pytest.fixture(scope="module")
def evaluation(network: NeuralNetwork, data: LabelledImages) -> Evaluation:
    return evaluate(network, data, CPU)


def test_confusion_counts_each_true_and_predicted_class(
    evaluation: Evaluation, data: LabelledImages, logits: NDArray[np.float64]
):
    expected = np.zeros((10, 10), np.int64)
    np.add.at(expected, (data.labels, logits.argmax(axis=1)), 1)
    np.testing.assert_array_equal(evaluation.confusion, expected)


def test_the_reference_predicts_several_classes(logits: NDArray[np.float64]):
    assert len(set(logits.argmax(axis=1))) > 2


def test_every_image_is_counted_once(evaluation: Evaluation):
    assert evaluation.images == evaluation.confusion.sum() == 4_100


def test_accuracy_is_the_share_of_images_predicted_right(
    evaluation: Evaluation, data: LabelledImages, logits: NDArray[np.float64]
):
    assert evaluation.accuracy == np.mean(logits.argmax(axis=1) == data.labels)


def test_log_loss_is_the_mean_negative_log_likelihood(
    evaluation: Evaluation, data: LabelledImages, logits: NDArray[np.float64]
):
    likelihoods = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    expected = -np.log(likelihoods[np.arange(len(data)), data.labels]).mean()
    assert evaluation.log_loss == pytest.approx(expected, rel=1e-5)


CONFUSION = np.diag(np.arange(10))
CONFUSION[3, 4] = 6
EXAMPLE = Evaluation(images=51, correct=45, log_loss=0.5, confusion=CONFUSION)


def test_recall_is_the_share_of_a_class_that_was_found():
    assert EXAMPLE.recall["Dress"] == 3 / 9


def test_precision_is_the_share_of_a_prediction_that_is_right():
    assert EXAMPLE.precision["Coat"] == 4 / 10


def test_recall_of_a_class_without_images_is_nan():
    assert np.isnan(EXAMPLE.recall["T-shirt/top"])


def test_precision_of_a_class_never_predicted_is_nan():
    assert np.isnan(EXAMPLE.precision["T-shirt/top"])


def test_recall_and_precision_are_named_in_class_order():
    assert tuple(EXAMPLE.recall) == tuple(EXAMPLE.precision) == CLASS_NAMES


def test_network_that_always_says_dress_has_the_accuracy_of_dresses():
    network = NeuralNetwork()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.linear_relu_stack[4].bias[3] = 1
    data = random_data(200)
    assert evaluate(network, data, CPU).accuracy == np.mean(data.labels == 3)


def test_evaluation_changes_no_weight(network: NeuralNetwork):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    evaluate(network, random_data(10), CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_evaluation_leaves_no_gradient(network: NeuralNetwork):
    evaluate(network, random_data(10), CPU)
    assert all(parameter.grad is None for parameter in network.parameters())
