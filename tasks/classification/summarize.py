"""Summarize committed predictions, and compare the class mixes of batches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.drift import MOVED_MUCH, MOVED_SOME, population_stability_index
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.records import ConfusionCell, PredictionSummary
from tasks.classification.tally import CONFIDENCE_BINS


@dataclass(frozen=True)
class ClassMixShift:
    """Change of the class mix from one batch to the next batch of the same model."""

    before: str
    """Id of the earlier batch."""
    after: str
    """Id of the later batch."""
    index: float
    """Population stability index."""

    @property
    def verdict(self) -> str:
        """Usual reading of the index: `steady`, `moved some` or `moved much`."""
        if self.index >= MOVED_MUCH:
            return "moved much"
        return "moved some" if self.index >= MOVED_SOME else "steady"


def class_mix_shift(batches: Sequence[BatchBooks]) -> ClassMixShift | None:
    """Compare the class mixes of the newest model's last two batches with predictions.

    Args:
        batches: committed batches of a table in the order in which they were planned, at least one.

    Returns:
        None if the newest model has fewer than two batches with predictions.
    """
    newest = [books for books in batches if books.model_version == batches[-1].model_version and books.predicted]
    before = previous_batch(batches, newest[-1]) if newest else None
    if before is None:
        return None
    counts = [class_counts(books.summary) for books in (before, newest[-1])]
    return ClassMixShift(before.batch, newest[-1].batch, population_stability_index(*counts))


def previous_batch(batches: Sequence[BatchBooks], batch: BatchBooks) -> BatchBooks | None:
    """Find the last committed batch with predictions of the same model that was planned before this one."""
    earlier = [
        books
        for books in batches
        if books.number < batch.number and books.model_version == batch.model_version and books.predicted
    ]
    return max(earlier, key=lambda books: books.number, default=None)


def class_counts(summary: PredictionSummary) -> list[int]:
    """Return the number of images by predicted class, in class order."""
    return summary.class_counts + [0] * (len(CLASS_NAMES) - len(summary.class_counts))


def describe(summary: PredictionSummary) -> dict[str, Any]:
    """Compute counts by class, mean confidence, and accuracy and confusion if there are labels.

    Returns:
        The summary in the form of `fmnist predictions show --json`.
    """
    counts = class_counts(summary)
    sums = summary.confidence_sums + [0.0] * (len(counts) - len(summary.confidence_sums))
    confusion = [[0] * len(CLASS_NAMES) for _ in CLASS_NAMES]
    for cell in summary.confusion:
        confusion[cell.label][cell.predicted] = cell.images
    images, labelled = sum(counts), sum(map(sum, confusion))
    return {
        "images": images,
        "mean_confidence": sum(sums) / images if images else None,
        "classes": {
            name: {"images": count, "mean_confidence": confidence / count}
            for name, count, confidence in zip(CLASS_NAMES, counts, sums, strict=True)
            if count
        },
        "labelled": labelled,
        "accuracy": sum(confusion[n][n] for n in range(len(CLASS_NAMES))) / labelled if labelled else None,
        "confusion": confusion if labelled else None,
    }


def summarize_rows(rows: Any) -> PredictionSummary:
    """Count predictions by class, confidence and label.

    Args:
        rows: prediction rows, as anything that DuckDB can read as a stream.
    """
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        cells = connection.execute(
            "SELECT predicted_class, label, least(floor(confidence * $bins), $bins - 1)::INT, count(*), "
            "sum(confidence::DOUBLE) FROM rows GROUP BY ALL",
            {"bins": CONFIDENCE_BINS},
        ).fetchall()
    classes = max((cell[0] for cell in cells), default=-1) + 1
    counts, sums, histogram = [0] * classes, [0.0] * classes, [0] * CONFIDENCE_BINS
    confusion: Counter[tuple[int, int]] = Counter()
    for predicted, label, confidence_bin, count, confidence in cells:
        counts[predicted] += count
        sums[predicted] += confidence
        histogram[confidence_bin] += count
        if label is not None:
            confusion[label, predicted] += count
    return PredictionSummary(
        class_counts=counts,
        confidence_sums=sums,
        confidence_histogram=histogram,
        confusion=[ConfusionCell(label=key[0], predicted=key[1], images=n) for key, n in sorted(confusion.items())],
    )
