"""Results of an evaluation."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES

RELIABILITY_BINS = 15
"""Number of confidence bins of equal width, as in Guo et al. (arXiv:1706.04599)."""

MAX_CONFIDENT_ERRORS = 24
"""Maximum number of wrongly classified images that an evaluation keeps."""


@dataclass(frozen=True)
class Reliability:
    """Accuracy of predictions by their confidence, in 15 bins of equal width from 0 to 1.

    A bin includes its upper bound, but not its lower bound. Source: Guo et al., On Calibration of Modern Neural
    Networks (arXiv:1706.04599), section 2.
    """

    counts: NDArray[np.int64]
    """`[15]`: images in each bin."""
    confidence: NDArray[np.float64]
    """`[15]`: mean confidence of each bin's images, 0 to 1. NaN in an empty bin."""
    accuracy: NDArray[np.float64]
    """`[15]`: share of each bin's images that are classified correctly, 0 to 1. NaN in an empty bin."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1. NaN without images.

        It is the distance between accuracy and confidence of a bin, averaged over all images. Source: Guo et al.,
        equation 3.
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum()) if self.counts.any() else float("nan")


@dataclass(frozen=True)
class Misclassified:
    """An image whose predicted class is wrong."""

    index: int
    """Index of the image, from 0."""
    label: int
    """True class, 0 to 9."""
    predicted: int
    """Predicted class, 0 to 9."""
    confidence: float
    """Probability of the predicted class."""


@dataclass(frozen=True)
class Evaluation:
    """A network's results on labelled images."""

    images: int
    correct: int
    log_loss: float
    """Mean negative log-likelihood of the true class, in nats."""
    confusion: NDArray[np.int64]
    """`[10, 10]`: images by true class (row) and predicted class (column)."""
    reliability: Reliability
    confident_errors: tuple[Misclassified, ...]
    """Up to 24 wrongly classified images, the most confident first."""

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly, 0 to 1."""
        return self.correct / self.images

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1."""
        return self.reliability.calibration_error

    @property
    def recall(self) -> dict[str, float]:
        """Share of each class's images that are predicted as that class, by class name. NaN without such images."""
        return _by_class(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def precision(self) -> dict[str, float]:
        """Share of each class's predictions that are correct, by class name. NaN for a class never predicted."""
        return _by_class(self.confusion.diagonal(), self.confusion.sum(axis=0))


@dataclass(frozen=True)
class TestResult:
    """A network's results on the test images, before and after calibrating its probabilities."""

    evaluation: Evaluation
    """Results with calibrated probabilities."""
    uncalibrated: Evaluation
    """Results at temperature 1. The predicted classes are the same."""
    temperature: float
    """Divisor of the logits before the softmax."""
    validation_images: int
    """Number of images that the temperature was fitted on. Without any, the temperature is 1."""
    error_pictures: tuple[bytes, ...] = field(repr=False)
    """PNG files of the images in `evaluation.confident_errors`."""

    __test__ = False  # pytest takes classes named Test... for tests

    @property
    def images(self) -> int:
        """Number of test images."""
        return self.evaluation.images

    @property
    def correct(self) -> int:
        """Number of test images that are classified correctly."""
        return self.evaluation.correct

    @property
    def accuracy(self) -> float:
        """Share of the test images that are classified correctly, 0 to 1."""
        return self.evaluation.accuracy

    @property
    def confusion(self) -> list[list[int]]:
        """Images by true class (row) and predicted class (column), `[10, 10]`."""
        rows: list[list[int]] = self.evaluation.confusion.tolist()
        return rows


def _by_class(part: NDArray[np.int64], whole: NDArray[np.int64]) -> dict[str, float]:
    shares = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return dict(zip(CLASS_NAMES, shares.tolist(), strict=True))
