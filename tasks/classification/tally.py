"""Count what becomes of a shard's images, for the shard's record."""

from collections import Counter

import numpy as np
import pyarrow as pa

from fmnist_model.predictions import Predictions, Rejection
from infra.storage.tables.records import ConfusionCell, LeastConfident, PredictionSummary, Reason, summed_reasons
from tasks.classification.reasons import general_reason

CONFIDENCE_BINS = 20
"""Bins of the confidence histogram, of equal width from 0 to 1."""
LEAST_CONFIDENT = 20
"""Images with the lowest confidence that a record and a report show."""
_MAX_REASONS = 1000
"""Reasons that a record lists one by one. Messages of a file system can differ in every image."""


class ShardTally:
    """Counts of the images of a shard so far."""

    def __init__(self, classes: int) -> None:
        self._counts = np.zeros(classes, np.int64)
        self._sums = np.zeros(classes, np.float64)
        self._histogram = np.zeros(CONFIDENCE_BINS, np.int64)
        self._confusion = np.zeros((classes, classes), np.int64)
        self._least: list[LeastConfident] = []
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}

    def add_predictions(self, images: pa.Array, predictions: Predictions, labels: pa.Array) -> None:
        """Count predictions.

        Args:
            images: URIs `[n]`.
            predictions: predictions of these images.
            labels: integers `[n]`, true classes, null where unknown.
        """
        classes, confidence = predictions.classes, predictions.confidence
        self._counts += np.bincount(classes, minlength=len(self._counts))
        self._sums += np.bincount(classes, weights=confidence, minlength=len(self._counts))
        bins = np.clip((confidence.astype(np.float64) * CONFIDENCE_BINS).astype(np.int64), 0, CONFIDENCE_BINS - 1)
        self._histogram += np.bincount(bins, minlength=CONFIDENCE_BINS)
        true = labels.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        is_class = (true >= 0) & (true < len(self._counts))
        np.add.at(self._confusion, (true[is_class], classes[is_class]), 1)
        self._keep_least(images, predictions, labels)

    def add_rejections(self, images: pa.Array, rejections: dict[int, Rejection]) -> None:
        """Count quarantined images.

        Args:
            images: URIs `[n]`.
            rejections: the rejection of each quarantined image, by its index in `images`.
        """
        for row, rejection in rejections.items():
            key = rejection.kind, general_reason(rejection.reason)
            self._reasons[key] += 1
            self._examples.setdefault(key, images[row].as_py())

    @property
    def summary(self) -> PredictionSummary:
        """The counts of the predictions."""
        cells = [
            ConfusionCell(label=int(label), predicted=int(predicted), images=int(self._confusion[label, predicted]))
            for label, predicted in np.argwhere(self._confusion)
        ]
        return PredictionSummary(
            class_counts=self._counts.tolist(),
            confidence_sums=self._sums.tolist(),
            confidence_histogram=self._histogram.tolist(),
            confusion=cells,
        )

    @property
    def reasons(self) -> list[Reason]:
        """The reasons of quarantine, the most frequent first. Their images add up to those quarantined."""
        counted = (
            Reason(kind=kind, reason=reason, images=count, example=self._examples[kind, reason])
            for (kind, reason), count in self._reasons.items()
        )
        return summed_reasons(counted, _MAX_REASONS)

    @property
    def least_confident(self) -> list[LeastConfident]:
        """The predictions with the lowest confidence, the lowest first."""
        return self._least

    def _keep_least(self, images: pa.Array, predictions: Predictions, labels: pa.Array) -> None:
        confidence = predictions.confidence
        if len(self._least) == LEAST_CONFIDENT:
            candidates = np.flatnonzero(confidence <= self._least[-1].confidence)
        else:
            candidates = np.arange(len(confidence))
        lowest = candidates[np.argsort(confidence[candidates], kind="stable")[:LEAST_CONFIDENT]]
        found = [
            LeastConfident(
                image=images[row].as_py(),
                confidence=float(confidence[row]),
                probabilities=predictions.probabilities[row].tolist(),
                label=labels[row].as_py(),
            )
            for row in lowest.tolist()
        ]
        self._least = least_confident([*self._least, *found])


def least_confident(predictions: list[LeastConfident]) -> list[LeastConfident]:
    """Return the predictions with the lowest confidence, the lowest first."""
    return sorted(predictions, key=lambda entry: (entry.confidence, entry.image))[:LEAST_CONFIDENT]
