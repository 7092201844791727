"""Evaluate a network on labelled images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.dataset import LabelledImages
from fmnist_model.evaluation.calibration import fit_temperature
from fmnist_model.evaluation.results import (
    MAX_CONFIDENT_ERRORS,
    RELIABILITY_BINS,
    Evaluation,
    Misclassified,
    Reliability,
    TestResult,
)
from fmnist_model.images.decode import encode_png
from fmnist_model.network import NeuralNetwork
from fmnist_model.training.augmentation import scale

_BATCH_SIZE = 4096


def evaluate(
    network: NeuralNetwork, data: LabelledImages, device: torch.device, temperature: float = 1.0
) -> Evaluation:
    """Classify all images and compare the predictions with their labels.

    Args:
        network: the network to evaluate. It is moved to the device.
        data: at least one image.
        device: where to run.
        temperature: divisor of the logits before the softmax. It changes probabilities, but not predicted classes.
    """
    return evaluate_logits(predict_logits(network, data.images, device), torch.from_numpy(data.labels), temperature)


def calibrate_and_evaluate(
    network: NeuralNetwork, validation: LabelledImages | None, test: LabelledImages, device: torch.device
) -> TestResult:
    """Fit the temperature on validation images, then evaluate on test images with and without it.

    Args:
        network: the network to evaluate. It is moved to the device.
        validation: images that the network was not trained on. Without any, the temperature is 1.
        test: at least one image.
        device: where to run.
    """
    temperature = 1.0
    if validation:
        logits = predict_logits(network, validation.images, device)
        temperature = fit_temperature(logits, torch.from_numpy(validation.labels))
    logits, labels = predict_logits(network, test.images, device), torch.from_numpy(test.labels)
    evaluation = evaluate_logits(logits, labels, temperature)
    return TestResult(
        evaluation=evaluation,
        uncalibrated=evaluate_logits(logits, labels),
        temperature=temperature,
        validation_images=len(validation or ()),
        error_pictures=tuple(encode_png(test.images[error.index]) for error in evaluation.confident_errors),
    )


def predict_logits(network: NeuralNetwork, images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Compute the network's logits, before any temperature.

    Args:
        network: the network to run. It is moved to the device.
        images: uint8 `[n, 28, 28]`, 0 black to 255 white.
        device: where to run.

    Returns:
        float32 `[n, 10]` on the CPU, because the metrics are computed in float64, which some devices lack.
    """
    network = network.to(device).eval()
    with torch.inference_mode():
        logits = torch.empty((len(images), len(CLASS_NAMES)), device=device)
        for first in range(0, len(images), _BATCH_SIZE):
            batch = slice(first, first + _BATCH_SIZE)
            logits[batch] = network(scale(torch.from_numpy(images[batch]).to(device)))
    return logits.cpu()


def evaluate_logits(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Evaluation:
    """Compare logits with the true classes.

    Args:
        logits: `[n, 10]`, for at least one image.
        labels: true classes, int64 `[n]`, on the same device.
        temperature: divisor of the logits before the softmax.
    """
    tempered = logits.double() / temperature
    predicted = logits.argmax(1)
    confidence = tempered.softmax(1).amax(1)
    cells = torch.bincount(labels * len(CLASS_NAMES) + predicted, minlength=len(CLASS_NAMES) ** 2)
    confusion = cells.reshape(len(CLASS_NAMES), len(CLASS_NAMES)).cpu().numpy()
    return Evaluation(
        images=len(labels),
        correct=int(confusion.trace()),
        log_loss=functional.cross_entropy(tempered, labels).item(),
        confusion=confusion,
        reliability=_reliability(confidence, predicted == labels),
        confident_errors=_confident_errors(confidence, predicted, labels),
    )


def _reliability(confidence: Tensor, correct: Tensor) -> Reliability:
    inner_bounds = torch.arange(1, RELIABILITY_BINS, dtype=confidence.dtype, device=confidence.device)
    bins = torch.bucketize(confidence, inner_bounds / RELIABILITY_BINS)
    counts, confidences, corrects = (
        torch.bincount(bins, weights, RELIABILITY_BINS).cpu().numpy()
        for weights in (None, confidence, correct.double())
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN in an empty bin
        return Reliability(counts, confidences / counts, corrects / counts)


def _confident_errors(confidence: Tensor, predicted: Tensor, labels: Tensor) -> tuple[Misclassified, ...]:
    wrong = (predicted != labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MAX_CONFIDENT_ERRORS]]
    columns = (worst, labels[worst], predicted[worst], confidence[worst])
    return tuple(Misclassified(*row) for row in zip(*(column.tolist() for column in columns), strict=True))
