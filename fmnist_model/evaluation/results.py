"""What an evaluation measures."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES

RELIABILITY_BINS = 15
"""Of equal width, as Guo et al. have them."""

MOST_CONFIDENT_ERRORS = 24
"""So many are kept."""


@dataclass(frozen=True)
class Reliability:
    """How often predictions of a given confidence are right, in 15 bins of equal width from 0 to 1.

    A bin holds the confidences above its lower bound and up to its upper one. Source: Guo et al., On Calibration of
    Modern Neural Networks (arXiv:1706.04599), section 2.
    """

    counts: NDArray[np.int64]
    """`[15]`: images in each bin."""
    confidence: NDArray[np.float64]
    """`[15]`: mean over the bin's images; NaN where there are none."""
    accuracy: NDArray[np.float64]
    """`[15]`: share of the bin's images classified rightly; NaN where there are none."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean over all images of how far their bin's accuracy is from its confidence.

        0 to 1; NaN where there is no image. Source: the same, equation 3.
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum()) if self.counts.any() else float("nan")


@dataclass(frozen=True)
class Misclassified:
    """An image that was given a class which is not its own."""

    index: int
    """Its number among the images, from 0."""
    label: int
    """Its class, 0 to 9."""
    predicted: int
    """The class it was given."""
    confidence: float
    """Probability of that class."""


@dataclass(frozen=True)
class Evaluation:
    """A network's results on labelled images."""

    images: int
    correct: int
    log_loss: float
    """Mean negative log-likelihood of the true class, in nats."""
    confusion: NDArray[np.int64]
    """`[10, 10]`: rows are true classes, columns predicted ones."""
    reliability: Reliability
    confident_errors: tuple[Misclassified, ...]
    """The most confident first, 24 at most."""

    @property
    def accuracy(self) -> float:
        """Share of the images whose most probable class is the true one."""
        return self.correct / self.images

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1."""
        return self.reliability.calibration_error

    @property
    def recall(self) -> dict[str, float]:
        """Share of each class's images that were found, by class name; NaN for a class without images."""
        return _by_class(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def precision(self) -> dict[str, float]:
        """Share of the images given each class that belong to it, by class name; NaN for a class never predicted."""
        return _by_class(self.confusion.diagonal(), self.confusion.sum(axis=0))


@dataclass(frozen=True)
class TestResult:
    """A network's results on the test images, before and after its probabilities were calibrated."""

    evaluation: Evaluation
    """With the probabilities at the temperature."""
    uncalibrated: Evaluation
    """With those at temperature 1; the classes are the same."""
    temperature: float
    validation_images: int
    """On which the temperature was fitted; without any, it is 1."""
    error_pictures: tuple[bytes, ...] = field(repr=False)
    """PNG files of the evaluation's `confident_errors`."""

    __test__ = False  # no test class, whatever its name begins with

    @property
    def images(self) -> int:
        """Number of test images."""
        return self.evaluation.images

    @property
    def correct(self) -> int:
        """Number of images classified rightly."""
        return self.evaluation.correct

    @property
    def accuracy(self) -> float:
        """Share of the images classified rightly."""
        return self.evaluation.accuracy

    @property
    def confusion(self) -> list[list[int]]:
        """Rows are true classes, columns predicted ones."""
        rows: list[list[int]] = self.evaluation.confusion.tolist()
        return rows


def _by_class(part: NDArray[np.int64], whole: NDArray[np.int64]) -> dict[str, float]:
    shares = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return dict(zip(CLASS_NAMES, shares.tolist(), strict=True))
