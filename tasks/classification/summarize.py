"""Summarize committed predictions, and compare the class mixes of batches."""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import duckdb

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.drift import MOVED_MUCH, MOVED_SOME, population_stability_index
from infra.storage.batch_log import read_batch_log
from infra.storage.object_store import ObjectStore
from infra.storage.prediction_table import BatchManifest, open_rows, read_manifest


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


def class_mix_shift(store: ObjectStore, manifests: list[BatchManifest]) -> ClassMixShift | None:
    """Compare the class mixes of the newest model's last two batches with predictions.

    Args:
        store: the store with the batches.
        manifests: committed batches of a table in the order in which they were planned, at least one.

    Returns:
        None if the newest model has fewer than two batches with predictions.
    """
    newest = [m for m in manifests if m.model_version == manifests[-1].model_version and m.predicted]
    before = previous_batch(store, newest[-1]) if newest else None
    if before is None:
        return None
    counts = [class_counts(summarize_rows(open_rows(store, [manifest]))) for manifest in (before, newest[-1])]
    return ClassMixShift(before.batch, newest[-1].batch, population_stability_index(*counts))


def previous_batch(store: ObjectStore, manifest: BatchManifest) -> BatchManifest | None:
    """Find the last committed batch with predictions of the same model that was planned before this one."""
    batches = [entry.batch for entry in read_batch_log(store, manifest.table).of_model(manifest.model_version)]
    for batch in reversed(list(takewhile(lambda batch: batch != manifest.batch, batches))):
        found = read_manifest(store, manifest.table, batch)
        if found is not None and found.predicted:
            return found
    return None


def class_counts(summary: dict[str, Any]) -> list[int]:
    """Return the number of images by predicted class, in class order, from a result of `summarize_rows`."""
    return [summary["classes"].get(name, {"images": 0})["images"] for name in CLASS_NAMES]


def summarize_rows(rows: Any) -> dict[str, Any]:
    """Compute counts by class and mean confidence of predictions, and accuracy and confusion if they have labels.

    Args:
        rows: prediction rows, as a `pyarrow.Table` or as a `pyarrow.dataset.Dataset`, which is read as a stream.

    Returns:
        The summary in the form of `fmnist predictions show --json`.
    """
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        cells = connection.execute(
            "SELECT predicted_class, label, count(*), sum(confidence::DOUBLE) FROM rows GROUP BY ALL"
        ).fetchall()
    confusion = [[0] * len(CLASS_NAMES) for _ in CLASS_NAMES]
    counts, confidences = [0] * len(CLASS_NAMES), [0.0] * len(CLASS_NAMES)
    for predicted, label, count, confidence in cells:
        counts[predicted] += count
        confidences[predicted] += confidence
        if label is not None:
            confusion[label][predicted] = count
    images, labelled = sum(counts), sum(map(sum, confusion))
    return {
        "images": images,
        "mean_confidence": sum(confidences) / images if images else None,
        "classes": {
            name: {"images": count, "mean_confidence": confidence / count}
            for name, count, confidence in zip(CLASS_NAMES, counts, confidences, strict=True)
            if count
        },
        "labelled": labelled,
        "accuracy": sum(confusion[n][n] for n in range(len(CLASS_NAMES))) / labelled if labelled else None,
        "confusion": confusion if labelled else None,
    }
