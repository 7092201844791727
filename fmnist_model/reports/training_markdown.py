"""Write the most important parts of the report on a training run as markdown, for Prefect's UI."""

import io

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.results import TestResult
from fmnist_model.reports.charts import Tile, draw_confusion, draw_gallery, standalone
from fmnist_model.reports.markdown import code, escaped, facts_table, svg_picture
from fmnist_model.reports.page import percent
from fmnist_model.reports.training_page import ReportedRun, curve_pictures, reliability_pictures

_MAX_ERRORS = 15
"""Maximum number of confident errors to show. The page shows all of them."""


def render_training_markdown(run: ReportedRun, result: TestResult, page: str) -> str:
    """Render facts, curves, reliability, confusion and confident errors, about 200 KB with the pictures.

    Args:
        run: the training run.
        result: the trained network's results on the test images.
        page: address of the full report.
    """
    pictures = [
        " ".join(svg_picture(standalone(drawn["svg"].encode()), drawn["alt"]) for drawn in row)
        for row in (curve_pictures(run.metrics), reliability_pictures(result))
    ]
    confusion = draw_confusion(result.evaluation.confusion, "Test images: true class by predicted class")
    return "\n\n".join(
        [
            facts_table(_facts(run, result, page)),
            "## Training",
            pictures[0],
            "## Calibration",
            "Confidence equals accuracy where the dots lie on the dashed line.",
            pictures[1],
            "## Confusion",
            svg_picture(standalone(confusion), "Confusion matrix. The full report has it as a table."),
            "## Most confident errors",
            _errors(result),
        ]
    )


def _facts(run: ReportedRun, result: TestResult, page: str) -> list[tuple[str, str]]:
    evaluation = result.evaluation
    calibration = f"{percent(evaluation.calibration_error)}, not calibrated: no validation images"
    if result.validation_images:
        before = percent(result.uncalibrated.calibration_error)
        calibration = (
            f"{before} before calibration, {percent(evaluation.calibration_error)} after "
            f"(temperature {result.temperature:.3f})"
        )
    return [
        (
            "test accuracy",
            f"**{percent(evaluation.accuracy)}** ({evaluation.correct:,} of {evaluation.images:,} images)",
        ),
        ("calibration error", calibration),
        *((name, escaped(run.facts[name])) for name in ("model", "workers", "throughput") if name in run.facts),
        ("run", code(run.run_id)),
        ("full report", code(page)),
    ]


def _errors(result: TestResult) -> str:
    errors = list(zip(result.evaluation.confident_errors, result.error_pictures, strict=True))[:_MAX_ERRORS]
    if not errors:
        return "None. All test images are classified correctly."
    tiles = []
    for error, png in errors:
        predicted, label = CLASS_NAMES[error.predicted], CLASS_NAMES[error.label]
        lines = [f"{predicted} {error.confidence:.2%}", f"true: {label}", f"test image {error.index}"]
        tiles.append(Tile(_pixels(png), lines))
    description = "The wrongly classified images with the highest confidence."
    return svg_picture(standalone(draw_gallery(tiles)), description)


def _pixels(png: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))
