"""Write the report on a training run as an HTML page that loads nothing else."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.results import RELIABILITY_BINS, Evaluation, Reliability, TestResult
from fmnist_model.reports.charts import draw_curves, draw_reliability
from fmnist_model.reports.page import confusion_rows, format_number, percent, render_page

Metrics = Mapping[str, Sequence[Any]]
"""Columns of a run's metrics by name, with one value per epoch: `epoch`, `loss`, `accuracy` and any others."""

_CURVES = (("loss", "Loss, nats"), ("accuracy", "Accuracy"))


@dataclass(frozen=True)
class ReportedRun:
    """The training run that a report is about."""

    run_id: str
    facts: Mapping[str, str]
    """Model version, data, code and other provenance, by name."""
    recipe: Mapping[str, Any]
    metrics: Metrics


def render_training_page(run: ReportedRun, result: TestResult) -> str:
    """Render metrics, curves, reliability, classes, confusion, confident errors and recipe. Any text is escaped.

    Args:
        run: the training run.
        result: the trained network's results on the test images.
    """
    return render_page(
        "training_page.html",
        run=run,
        recipe={name.replace("_", " "): value for name, value in run.recipe.items()},
        result=result,
        classes=_classes(result.evaluation),
        confusion=confusion_rows(result.evaluation.confusion),
        curves=curve_pictures(run.metrics),
        epochs=_epochs(run.metrics),
        errors=_errors(result),
        reliability=reliability_pictures(result),
    )


def curve_pictures(metrics: Metrics) -> list[dict[str, str]]:
    """Draw loss and accuracy by epoch. Each picture has an `svg` and an `alt` text."""
    epochs = metrics["epoch"]
    pictures = []
    for column, title in _CURVES:
        columns = {"training": column, "validation": f"validation_{column}"}
        curves = {name: metrics[column] for name, column in columns.items() if column in metrics}
        lasts = ", ".join(f"{name} {format_number(values[-1])}" for name, values in curves.items())
        alt = f"{title}, in {len(epochs)} epochs. In the last epoch: {lasts}."
        pictures.append({"svg": draw_curves(epochs, curves, title).decode(), "alt": alt})
    return pictures


def reliability_pictures(result: TestResult) -> list[dict[str, Any]]:
    """Draw reliability before and after calibration. Each picture has a `title`, an `svg`, an `alt` text and `bins`."""
    evaluations = {"Before": result.uncalibrated, "After": result.evaluation}
    if not result.validation_images:
        evaluations = {"Uncalibrated": result.evaluation}
    return [
        {
            "title": title,
            "svg": draw_reliability(evaluation.reliability, title).decode(),
            "alt": f"Reliability diagram, {title.lower()}: expected calibration error "
            f"{percent(evaluation.calibration_error)}.",
            "bins": _bins(evaluation.reliability),
        }
        for title, evaluation in evaluations.items()
    ]


def _epochs(metrics: Metrics) -> list[list[str]]:
    return [[format_number(value) for value in row] for row in zip(*metrics.values(), strict=True)]


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
