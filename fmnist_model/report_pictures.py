"""Pictures of how a network was trained and how far its confidence can be trusted, as SVG."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_model.metrics import RELIABILITY_BINS, Reliability
from fmnist_model.palette import INK, OTHER, QUIET, SECOND, WINNER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STROKES = (("-", SECOND), ("--", WINNER))
"""Curves differ by their strokes as well as by their colours."""

_MARKED_EPOCHS = 40
"""Up to so many, each value is marked."""

_UNTOLD = ("Creator", "Date", "Format", "Type")
"""What matplotlib would put into the file besides."""

_VARIABLES = {INK: "ink", QUIET: "quiet", WINNER: "winner", OTHER: "other", SECOND: "second"}


def draw_curves(epochs: Sequence[int], curves: Mapping[str, Sequence[float | None]], title: str) -> bytes:
    """Draw how a figure went from epoch to epoch.

    Args:
        epochs: `n` numbers of epochs.
        curves: one or two by name, `n` values each; where one is None or not finite, the curve has a gap.
        title: what the figure is, with its unit.

    Returns:
        An SVG file, 5.2 by 3.2 inches, to be shown by itself or to be part of a page. The page may set its colours by
        the CSS variables `--ink`, `--quiet`, `--winner`, `--other` and `--second`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), (stroke, color) in zip(curves.items(), _STROKES, strict=False):
        points = [math.nan if value is None or not math.isfinite(value) else value for value in values]
        marker = "o" if len(epochs) <= _MARKED_EPOCHS else None
        axes.plot(epochs, points, stroke, color=color, linewidth=2, marker=marker, markersize=4, label=name)
    _style(axes, title, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, labelcolor=INK)
    return _svg(figure, title)


def draw_reliability(reliability: Reliability, title: str) -> bytes:
    """Draw the accuracy in each bin of confidence, over the images in it; on the diagonal, confidence is accuracy.

    Returns:
        An SVG file, 4.4 by 4.8 inches, as `draw_curves` makes them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 4.8), layout="constrained")
    diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1)
    bars: dict[str, Any] = {"width": 1 / RELIABILITY_BINS, "align": "edge", "color": OTHER, "edgecolor": QUIET}
    diagram.bar(edges[:-1], np.nan_to_num(reliability.accuracy), linewidth=0.8, label="accuracy in the bin", **bars)
    diagram.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1.2)
    diagram.plot(
        reliability.confidence, reliability.accuracy, "o", color=WINNER, markersize=4.5, label="mean confidence"
    )
    diagram.set_ylim(0, 1)
    _style(diagram, title, "", "accuracy")
    histogram.bar(edges[:-1], reliability.counts / max(reliability.counts.sum(), 1), linewidth=0.8, **bars)
    histogram.set_xlim(0, 1)
    _style(histogram, "", "confidence", "share of images")
    figure.legend(frameon=False, labelcolor=INK, loc="outside lower center", ncols=2)
    return _svg(figure, title)


def _style(axes: "Axes", title: str, x_label: str, y_label: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x_label, color=QUIET)
    axes.set_ylabel(y_label, color=QUIET)
    axes.tick_params(colors=QUIET, length=3)
    axes.grid(axis="y", color=QUIET, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(QUIET)


def _svg(figure: "Figure", title: str) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Letters as letters; and the same names inside for the same picture, others than in one with another title.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_UNTOLD) | {"Title": title})
    text = buffer.getvalue().decode()
    # Nothing refers to these names, and in a page each must be there once.
    text = re.sub(r' id="[\w.]+_\d+"', "", text[text.index("<svg") :])
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var(--{name}, {color})")
    return text.encode()
