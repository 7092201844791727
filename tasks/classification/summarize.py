"""What a run came to, from what lies in the store."""

from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.drift import MOVED_MUCH, MOVED_SOME, population_stability_index
from infra.settings import load_settings
from infra.storage.datasets import DatasetRecord
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.prediction_table import BatchManifest, open_rows, read_rows
from tasks.step import step


@dataclass(frozen=True)
class CheckedPredictions:
    """Predictions held against the labels in the data set, joined by image."""

    images: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Share predicted rightly."""
        return self.correct / self.images if self.images else float("nan")


@step("compare predictions with labels")
def compare_with_labels(manifests: list[BatchManifest], dataset: DatasetRecord, split: str) -> CheckedPredictions:
    """Join the predictions with the labels in a split's own files, by image, and count those that agree."""
    store = open_store(load_settings().store)
    predictions = read_rows(store, manifests, ["image", "predicted_class"])
    labels = _labels(store, dataset, split)
    with duckdb.connect() as connection:
        connection.register("predictions", predictions)
        connection.register("labels", labels)
        row = connection.execute(
            "SELECT count(*), count(*) FILTER (predicted_class = label) FROM predictions JOIN labels USING (image)"
        ).fetchone()
    images, correct = row or (0, 0)
    return CheckedPredictions(images, correct)


def _labels(store: ObjectStore, dataset: DatasetRecord, split: str) -> pa.Table:
    tables = []
    for key in dataset.splits[split].parts:
        filesystem, path = store.arrow(key)
        labels = pq.read_table(path, filesystem=filesystem, columns=["label"]).column("label")
        images = pa.array([f"{store.uri(key)}#row={number}" for number in range(len(labels))])
        tables.append(pa.table({"image": images, "label": labels}))
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class ClassMixShift:
    """How the mix of predicted classes moved from one batch to the next of the same model."""

    before: str
    after: str
    """Ids of the batches."""
    index: float
    """Population stability index."""

    @property
    def verdict(self) -> str:
        """The customary word for it."""
        if self.index >= MOVED_MUCH:
            return "moved much"
        return "moved some" if self.index >= MOVED_SOME else "steady"


def class_mix_shift(store: ObjectStore, manifests: list[BatchManifest]) -> ClassMixShift | None:
    """From the last batch but one of the newest model to the last; None where one of them is missing or empty."""
    newest = [m for m in manifests if m.model_version == manifests[-1].model_version and m.predicted]
    if len(newest) < 2:
        return None
    before, after = newest[-2:]
    counts = [class_counts(summarize_rows(open_rows(store, [manifest]))) for manifest in (before, after)]
    return ClassMixShift(before.batch, after.batch, population_stability_index(*counts))


def class_counts(summary: dict[str, Any]) -> list[int]:
    """Images by predicted class, in class order, of what `summarize_rows` returns."""
    return [summary["classes"].get(name, {"images": 0})["images"] for name in CLASS_NAMES]


def summarize_rows(rows: Any) -> dict[str, Any]:
    """Counts by class, mean confidence and, where labels exist, accuracy and confusion of prediction rows.

    Args:
        rows: a `pyarrow.Table` or `pyarrow.dataset.Dataset`; the latter is read as a stream.
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
