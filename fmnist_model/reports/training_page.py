"""The report of a training run: one HTML page that needs nothing beside it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.results import RELIABILITY_BINS, Evaluation, Reliability, TestResult
from fmnist_model.reports.charts import draw_curves, draw_reliability
from fmnist_model.reports.page import confusion_rows, figure, percent, render_page

Metrics = Mapping[str, Sequence[Any]]
"""Columns of a run's metrics by name, a value an epoch: `epoch`, `loss`, `accuracy` and any others."""

_CURVES = (("loss", "Loss, nats"), ("accuracy", "Accuracy"))


@dataclass(frozen=True)
class ReportedRun:
    """What a report tells of a run besides its results."""

    run_id: str
    facts: Mapping[str, str]
    """Model version, data, code and the like, by name."""
    recipe: Mapping[str, Any]
    metrics: Metrics


def render_report(run: ReportedRun, result: TestResult) -> str:
    """Write the page: figures, curves, reliability, classes, confusion, confident errors, recipe.

    Whatever is told of the run or the result stands in it as text, whatever letters it has.
    """
    return render_page(
        "training_page.html",
        run=run,
        recipe={name.replace("_", " "): value for name, value in run.recipe.items()},
        result=result,
        classes=_classes(result.evaluation),
        confusion=confusion_rows(result.evaluation.confusion),
        curves=curve_pictures(run.metrics),
        epochs=_rows(run.metrics),
        errors=_errors(result),
        reliability=reliability_pictures(result),
    )


def curve_pictures(metrics: Metrics) -> list[dict[str, str]]:
    """How loss and accuracy went: of each the `svg`, and `alt`, the same in words."""
    epochs = metrics["epoch"]
    pictures = []
    for column, title in _CURVES:
        columns = {"training": column, "validation": f"validation_{column}"}
        curves = {name: metrics[column] for name, column in columns.items() if column in metrics}
        lasts = ", ".join(f"{name} {figure(values[-1])}" for name, values in curves.items())
        alt = f"{title} by epoch, {len(epochs)} of them. In the last: {lasts}."
        pictures.append({"svg": draw_curves(epochs, curves, title).decode(), "alt": alt})
    return pictures


def _rows(metrics: Metrics) -> list[list[str]]:
    return [[figure(value) for value in row] for row in zip(*metrics.values(), strict=True)]


def reliability_pictures(result: TestResult) -> list[dict[str, Any]]:
    """Reliability before and after calibration: of each `title`, `svg`, `alt` (the same in words) and `bins`."""
    found = {"Before": result.uncalibrated, "After": result.evaluation}
    if not result.validation_images:
        found = {"Uncalibrated": result.evaluation}
    return [
        {
            "title": title,
            "svg": draw_reliability(evaluation.reliability, title).decode(),
            "alt": f"Reliability diagram, {title.lower()}: expected calibration error "
            f"{percent(evaluation.calibration_error)}.",
            "bins": _bins(evaluation.reliability),
        }
        for title, evaluation in found.items()
    ]


def _bins(reliability: Reliability) -> list[tuple[str, int, str, str]]:
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1)
    columns = (reliability.counts.tolist(), reliability.confidence, reliability.accuracy)
    return [
        (f"{percent(low)} to {percent(high)}", count, percent(confidence), percent(accuracy))
        for low, high, count, confidence, accuracy in zip(edges[:-1], edges[1:], *columns, strict=True)
        if count
    ]


def _classes(evaluation: Evaluation) -> list[tuple[str, int, str, str]]:
    counts = evaluation.confusion.sum(axis=1).tolist()
    return [
        (name, count, percent(evaluation.precision[name]), percent(evaluation.recall[name]))
        for name, count in zip(CLASS_NAMES, counts, strict=True)
    ]


def _errors(result: TestResult) -> list[dict[str, Any]]:
    return [
        {
            "index": error.index,
            "label": CLASS_NAMES[error.label],
            "predicted": CLASS_NAMES[error.predicted],
            "confidence": percent(error.confidence),
            "png": base64.b64encode(picture).decode(),
        }
        for error, picture in zip(result.evaluation.confident_errors, result.error_pictures, strict=True)
    ]
