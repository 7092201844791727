"""Evaluation agrees with the same metrics computed in NumPy."""

import io
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.dataset import LabelledImages
from fmnist_model.evaluation.calibration import fit_temperature
from fmnist_model.evaluation.evaluate import calibrate_and_evaluate, evaluate, evaluate_logits, predict_logits
from fmnist_model.evaluation.results import Evaluation, Misclassified, Reliability
from fmnist_model.network import NeuralNetwork

CPU = torch.device("cpu")


def random_data(n: int) -> LabelledImages:
    generator = np.random.default_rng(2)
    return LabelledImages(generator.integers(0, 256, (n, 28, 28), dtype=np.uint8), generator.integers(0, 10, n))


@pytest.fixture(scope="module")
def network() -> NeuralNetwork:
    """A network with large output weights, so that its predictions spread over several classes."""
    torch.manual_seed(0)
    network = NeuralNetwork()
    with torch.no_grad():
        network.linear_relu_stack[4].weight.mul_(50)
    return network


def numpy_logits(network: NeuralNetwork, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    state = {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}
    values = images.reshape(len(images), -1) / 255
    for layer in (0, 2, 4):
        values = values @ state[f"linear_relu_stack.{layer}.weight"].T + state[f"linear_relu_stack.{layer}.bias"]
        if layer < 4:
            values = np.maximum(values, 0)
    return values


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    """More images than one forward pass takes, but not a multiple of that number."""
    return random_data(4_100)


@pytest.fixture(scope="module")
def logits(network: NeuralNetwork, data: LabelledImages) -> NDArray[np.float64]:
    return numpy_logits(network, data.images)


@pytest.fixture(scope="module")
def evaluation(network: NeuralNetwork, data: LabelledImages) -> Evaluation:
    return evaluate(network, data, CPU)


def test_confusion_counts_each_true_and_predicted_class(
    evaluation: Evaluation, data: LabelledImages, logits: NDArray[np.float64]
):
    expected = np.zeros((10, 10), np.int64)
    np.add.at(expected, (data.labels, logits.argmax(axis=1)), 1)
    np.testing.assert_array_equal(evaluation.confusion, expected)


def test_reference_predicts_several_classes(logits: NDArray[np.float64]):
    assert len(set(logits.argmax(axis=1))) > 2


def test_every_image_is_counted_once(evaluation: Evaluation):
    assert evaluation.images == evaluation.confusion.sum() == 4_100


def test_accuracy_is_the_share_of_correct_predictions(
    evaluation: Evaluation, data: LabelledImages, logits: NDArray[np.float64]
):
    assert evaluation.accuracy == np.mean(logits.argmax(axis=1) == data.labels)


def test_log_loss_is_the_mean_negative_log_likelihood(
    evaluation: Evaluation, data: LabelledImages, logits: NDArray[np.float64]
):
    likelihoods = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    expected = -np.log(likelihoods[np.arange(len(data)), data.labels]).mean()
    assert evaluation.log_loss == pytest.approx(expected, rel=1e-5)


def likelihoods_at(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    tempered = logits / temperature
    return np.exp(tempered - np.logaddexp.reduce(tempered, axis=1, keepdims=True))


def test_temperature_divides_the_logits(
    network: NeuralNetwork, data: LabelledImages, logits: NDArray[np.float64], evaluation: Evaluation
):
    tempered = evaluate(network, data, CPU, temperature=3)
    expected = -np.log(likelihoods_at(logits, 3)[np.arange(len(data)), data.labels]).mean()
    assert tempered.log_loss == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(tempered.confusion, evaluation.confusion)


def test_no_images_give_no_logits(network: NeuralNetwork):
    assert predict_logits(network, np.empty((0, 28, 28), np.uint8), CPU).shape == (0, 10)


# Reliability


def expected_bins(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[tuple[int, float, float]]:
    """Count, mean confidence and accuracy of each bin, computed image by image."""
    found = []
    for number in range(15):
        inside = [image for image in range(len(confidence)) if number / 15 < confidence[image] <= (number + 1) / 15]
        shares = (confidence[inside].mean(), correct[inside].mean()) if inside else (math.nan, math.nan)
        found.append((len(inside), *shares))
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_bins_equal_those_computed_image_by_image(network: NeuralNetwork, data: LabelledImages, temperature: float):
    logits = predict_logits(network, data.images, CPU)
    likelihoods = likelihoods_at(logits.numpy().astype(np.float64), temperature)
    correct = likelihoods.argmax(axis=1) == data.labels
    found = evaluate_logits(logits, torch.from_numpy(data.labels), temperature).reliability
    counts, confidence, accuracy = zip(*expected_bins(likelihoods.max(axis=1), correct), strict=True)
    assert found.counts.tolist() == list(counts)
    assert sum(count > 0 for count in counts) > 5
    np.testing.assert_allclose(found.confidence, confidence, rtol=1e-12)
    np.testing.assert_allclose(found.accuracy, accuracy, rtol=1e-12)


def logits_with(confidence: list[float]) -> torch.Tensor:
    """Logits that give class 3 these probabilities, and all other classes the same."""
    shares = torch.full((len(confidence), 10), math.nan, dtype=torch.float64)
    shares[:] = (1 - torch.tensor(confidence, dtype=torch.float64)[:, None]) / 9
    shares[:, 3] = torch.tensor(confidence, dtype=torch.float64)
    return shares.log()


def test_calibration_error_is_the_mean_gap_weighted_by_images():
    # 4 images at 0.9, of which 3 are correct, and 1 wrong image at 0.5: (4 * 0.15 + 1 * 0.5) / 5.
    found = evaluate_logits(logits_with([0.9, 0.9, 0.9, 0.9, 0.5]), torch.tensor([3, 3, 3, 0, 0]))
    assert found.calibration_error == pytest.approx(0.22)


def test_certain_and_correct_predictions_have_no_calibration_error():
    assert evaluate_logits(torch.eye(10) * 1e4, torch.arange(10)).calibration_error == 0


def test_certain_and_wrong_predictions_have_a_calibration_error_of_one():
    assert evaluate_logits(torch.eye(10) * 1e4, torch.arange(10).roll(1)).calibration_error == 1


def test_over_and_underconfidence_in_a_bin_cancel_out():
    found = evaluate_logits(logits_with([0.71, 0.73]), torch.tensor([3, 0]))
    assert found.calibration_error == pytest.approx(0.22)


@pytest.mark.parametrize(("ties", "bin_number"), [(10, 1), (5, 2), (3, 4), (1, 14)])
def test_confidence_on_a_bound_is_in_the_bin_below(ties: int, bin_number: int):
    # 1/10 is inside a bin, while 1/5, 1/3 and 1 are bounds.
    logits = torch.full((1, 10), -1e4)
    logits[0, :ties] = 0
    counts = evaluate_logits(logits, torch.tensor([0])).reliability.counts
    assert counts.tolist() == [int(number == bin_number) for number in range(15)]


def test_calibration_error_without_images_is_nan():
    assert math.isnan(NO_BINS.calibration_error)


# Errors


def test_confident_errors_are_sorted_by_confidence(
    data: LabelledImages, logits: NDArray[np.float64], evaluation: Evaluation
):
    likelihoods = likelihoods_at(logits, 1)
    wrong = np.flatnonzero(logits.argmax(axis=1) != data.labels)
    worst = wrong[np.argsort(-likelihoods.max(axis=1)[wrong])][:24]
    found = evaluation.confident_errors
    np.testing.assert_allclose([error.confidence for error in found], likelihoods[worst].max(axis=1), rtol=1e-5)
    assert [error.confidence for error in found] == sorted((e.confidence for e in found), reverse=True)
    for error in found:
        assert (error.label, error.predicted) == (data.labels[error.index], logits[error.index].argmax())


def test_errors_of_equal_confidence_keep_their_order():
    logits = logits_with([0.5, 0.9, 0.9, 0.6])
    assert evaluate_logits(logits, torch.tensor([3, 1, 2, 0])).confident_errors == (
        Misclassified(1, 1, 3, pytest.approx(0.9)),
        Misclassified(2, 2, 3, pytest.approx(0.9)),
        Misclassified(3, 0, 3, pytest.approx(0.6)),
    )


def test_correct_predictions_give_no_errors():
    assert evaluate_logits(torch.eye(10), torch.arange(10)).confident_errors == ()


# Calibration


def test_temperature_is_fitted_on_the_validation_images(network: NeuralNetwork, data: LabelledImages):
    validation = random_data(300)
    result = calibrate_and_evaluate(network, validation, data, CPU)
    logits = predict_logits(network, validation.images, CPU)
    assert result.temperature == fit_temperature(logits, torch.from_numpy(validation.labels))
    assert result.temperature > 2, "random labels must lower the confidence"
    assert result.validation_images == 300


def test_result_compares_test_images_before_and_after_calibration(
    network: NeuralNetwork, data: LabelledImages, evaluation: Evaluation
):
    result = calibrate_and_evaluate(network, random_data(300), data, CPU)
    assert result.uncalibrated.log_loss == evaluation.log_loss
    assert result.evaluation.log_loss == evaluate(network, data, CPU, result.temperature).log_loss
    assert result.evaluation.calibration_error < result.uncalibrated.calibration_error
    assert (result.correct, result.confusion) == (evaluation.correct, evaluation.confusion.tolist())


def test_temperature_is_one_without_validation_images(
    network: NeuralNetwork, data: LabelledImages, evaluation: Evaluation
):
    none = LabelledImages(np.empty((0, 28, 28), np.uint8), np.empty(0, np.int64))
    result = calibrate_and_evaluate(network, none, data, CPU)
    assert (result.temperature, result.validation_images) == (1, 0)
    assert result.evaluation.log_loss == result.uncalibrated.log_loss == evaluation.log_loss


def test_error_pictures_are_those_of_the_errors_in_order(network: NeuralNetwork, data: LabelledImages):
    result = calibrate_and_evaluate(network, random_data(300), data, CPU)
    assert len(result.error_pictures) == 24
    for picture, error in zip(result.error_pictures, result.evaluation.confident_errors, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), data.images[error.index])


# Classes


CONFUSION = np.diag(np.arange(10))
CONFUSION[3, 4] = 6
NO_BINS = Reliability(np.zeros(15, np.int64), np.full(15, np.nan), np.full(15, np.nan))
EXAMPLE = Evaluation(images=51, correct=45, log_loss=0.5, confusion=CONFUSION, reliability=NO_BINS, confident_errors=())


def test_recall_is_the_share_of_a_class_that_is_found():
    assert EXAMPLE.recall["Dress"] == 3 / 9


def test_precision_is_the_share_of_predictions_that_are_correct():
    assert EXAMPLE.precision["Coat"] == 4 / 10


def test_recall_of_a_class_without_images_is_nan():
    assert np.isnan(EXAMPLE.recall["T-shirt/top"])


def test_precision_of_a_class_never_predicted_is_nan():
    assert np.isnan(EXAMPLE.precision["T-shirt/top"])


def test_recall_and_precision_are_in_class_order():
    assert tuple(EXAMPLE.recall) == tuple(EXAMPLE.precision) == CLASS_NAMES


def test_constant_prediction_has_the_accuracy_of_its_class():
    network = NeuralNetwork()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.linear_relu_stack[4].bias[3] = 1
    data = random_data(200)
    assert evaluate(network, data, CPU).accuracy == np.mean(data.labels == 3)


def test_evaluation_leaves_the_weights_unchanged(network: NeuralNetwork):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    evaluate(network, random_data(10), CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_evaluation_leaves_no_gradient(network: NeuralNetwork):
    evaluate(network, random_data(10), CPU)
    assert all(parameter.grad is None for parameter in network.parameters())
