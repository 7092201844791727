"""The report of a training run in markdown, to be shown beside the run: what matters most of its page."""

import io

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.results import TestResult
from fmnist_model.reports.charts import Tile, draw_confusion, draw_gallery, standalone
from fmnist_model.reports.markdown import code, facts, plain, svg_picture
from fmnist_model.reports.page import percent
from fmnist_model.reports.training_page import ReportedRun, curve_pictures, reliability_pictures

_MOST_ERRORS = 15
"""So many of the images that are most confidently wrong; the page has them all."""


def render_report_markdown(run: ReportedRun, result: TestResult, page: str) -> str:
    """Write facts, curves, reliability, confusion and confident errors, some 200 KB with the pictures.

    Args:
        run: as for `render_report`.
        result: likewise.
        page: address of the page.
    """
    pictures = [
        " ".join(svg_picture(standalone(drawn["svg"].encode()), drawn["alt"]) for drawn in row)
        for row in (curve_pictures(run.metrics), reliability_pictures(result))
    ]
    confusion = draw_confusion(result.evaluation.confusion, "Test images: true class by predicted class")
    return "\n\n".join(
        [
            facts(_facts(run, result, page)),
            "## Training",
            pictures[0],
            "## Calibration",
            "Where a bar and its dot lie on the dashed line, confidence is accuracy.",
            pictures[1],
            "## Confusion",
            svg_picture(standalone(confusion), "Confusion matrix. Its page has it as a table."),
            "## Most confidently wrong",
            _errors(result),
        ]
    )


def _facts(run: ReportedRun, result: TestResult, page: str) -> list[tuple[str, str]]:
    found = result.evaluation
    calibration = f"{percent(found.calibration_error)}, not calibrated: no validation images"
    if result.validation_images:
        before = percent(result.uncalibrated.calibration_error)
        calibration = (
            f"{before} before calibration, {percent(found.calibration_error)} after it "
            f"(temperature {result.temperature:.3f})"
        )
    told = [(name, plain(run.facts[name])) for name in ("model", "workers", "speed") if name in run.facts]
    return [
        ("test accuracy", f"**{percent(found.accuracy)}** ({found.correct:,} of {found.images:,} images)"),
        ("calibration error", calibration),
        *told,
        ("run", code(run.run_id)),
        ("whole report", code(page)),
    ]


def _errors(result: TestResult) -> str:
    errors = list(zip(result.evaluation.confident_errors, result.error_pictures, strict=True))[:_MOST_ERRORS]
    if not errors:
        return "None: all test images were classified rightly."
    tiles = []
    for error, png in errors:
        said, true = CLASS_NAMES[error.predicted], CLASS_NAMES[error.label]
        tiles.append(Tile(_pixels(png), [f"{said} {error.confidence:.2%}", f"is {true}", f"test image {error.index}"]))
    words = "Images that were given another class than their own with the highest confidence."
    return svg_picture(standalone(draw_gallery(tiles)), words)


def _pixels(png: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))
