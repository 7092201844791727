"""Summarize committed predictions, and compare the class mixes of batches."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.drift import MOVED_MUCH, MOVED_SOME, population_stability_index
from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.newest import counts_are_newest, newest_rows
from infra.storage.tables.records import ConfusionCell, PredictionSummary, Reason
from tasks.classification.reasons import general_reason, reason_kind
from tasks.classification.tally import CONFIDENCE_BINS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_TOP_REASONS = 10
"""Reasons of quarantine to show."""


@dataclass(frozen=True)
class ModelCounts:
    """Counts of the newest rows of a model version."""

    predictions: PredictionSummary
    quarantined: int
    reasons: list[Reason]
    """The most frequent reasons of quarantine, the most frequent first."""


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
        None if there are fewer than two batches with predictions of the newest model.
    """
    if not batches:
        return None
    version = batches[-1].model_version
    newest = [books for books in batches if books.model_version == version and any(books.summary.class_counts)]
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
        if books.number < batch.number
        and books.model_version == batch.model_version
        and any(books.summary.class_counts)  # migrated batches may not have them
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


def count_newest(store: ObjectStore, table: str, batches: Sequence[BatchBooks]) -> dict[str, ModelCounts]:
    """Count the newest row of each image, by model version in the order of the versions' first batches.

    The books of the batches are enough, unless a file has changed, or rows were migrated or deleted.

    Args:
        store: store of the table.
        table: name of the prediction table.
        batches: the books of its committed batches.
    """
    newest = counts_are_newest(store, table, batches)
    counts: dict[str, ModelCounts] = {}
    for version in dict.fromkeys(books.model_version for books in batches):
        same = [books for books in batches if books.model_version == version]
        if newest[version]:
            counts[version] = ModelCounts(
                PredictionSummary.total(books.summary for books in same),
                sum(books.quarantined for books in same),
                _top_reasons(reason for books in same for reason in books.reasons),
            )
        else:
            with newest_rows(store, table, batches, version) as connection:
                reasons = list(_reasons(connection))
                counts[version] = ModelCounts(
                    summarize_rows(connection), sum(reason.images for reason in reasons), _top_reasons(reasons)
                )
    return counts


def summarize_rows(connection: "DuckDBPyConnection") -> PredictionSummary:
    """Count the predictions of the view `newest` by class, confidence and label."""
    cells = connection.execute(
        "SELECT predicted_class, label, least(floor(confidence::DOUBLE * $bins), $bins - 1)::INT, count(*), "
        "sum(confidence::DOUBLE) FROM newest GROUP BY ALL",
        {"bins": CONFIDENCE_BINS},
    ).fetchall()
    classes = max((cell[0] for cell in cells), default=-1) + 1
    counts, sums, histogram = [0] * classes, [0.0] * classes, [0] * CONFIDENCE_BINS
    confusion: Counter[tuple[int, int]] = Counter()
    for predicted, label, confidence_bin, count, confidence in cells:
        counts[predicted] += count
        sums[predicted] += confidence
        histogram[confidence_bin] += count
        if label is not None and 0 <= label < len(CLASS_NAMES):
            confusion[label, predicted] += count
    return PredictionSummary(
        class_counts=counts,
        confidence_sums=sums,
        confidence_histogram=histogram,
        confusion=[ConfusionCell(label=key[0], predicted=key[1], images=n) for key, n in sorted(confusion.items())],
    )


def _reasons(connection: "DuckDBPyConnection") -> Iterator[Reason]:
    """Count the images of the view `newest_quarantine` by the part of the reason that doesn't differ between images."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    rows = connection.execute("SELECT reason, count(*), min(image) FROM newest_quarantine GROUP BY ALL")
    while chunk := rows.fetchmany(10_000):
        for reason, images, example in chunk:
            general = general_reason(reason)
            counts[general] += images
            examples.setdefault(general, example)
    for reason, images in counts.items():
        yield Reason(kind=reason_kind(reason), reason=reason, images=images, example=examples[reason])


def _top_reasons(reasons: Iterable[Reason]) -> list[Reason]:
    """Add up equal reasons, and return the most frequent ones."""
    merged: dict[str, Reason] = {}
    for reason in reasons:
        before = merged.get(reason.reason)
        images = reason.images + (before.images if before else 0)
        merged[reason.reason] = (before or reason).model_copy(update={"images": images})
    return sorted(merged.values(), key=lambda reason: (-reason.images, reason.reason))[:_TOP_REASONS]
