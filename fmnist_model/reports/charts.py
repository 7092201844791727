"""Draw training curves, reliability, confusion, class mix and galleries of images as SVG."""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.results import RELIABILITY_BINS, Reliability
from fmnist_model.images.decode import encode_png
from fmnist_model.reports.palette import INK, OTHER, QUIET, SECOND, WINNER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STROKES = (("-", SECOND), ("--", WINNER))
"""Strokes and colors of the curves, so that you can tell them apart without seeing colors."""

_MAX_MARKED_EPOCHS = 40
"""Maximum number of epochs whose values are marked with dots."""

_TILES_PER_ROW = 5
_TILE_WIDTH, _TILE_PICTURE, _TILE_LINE = 134, 84, 16
"""Width of a tile, width and height of its picture, and height of a line of text, in pixels."""

_OMITTED_METADATA = ("Creator", "Date", "Format", "Type")
"""Metadata that matplotlib would write, some of which changes from run to run."""

_VARIABLES = {INK: "ink", QUIET: "quiet", WINNER: "winner", OTHER: "other", SECOND: "second"}
"""CSS variables of the colors."""


def draw_curves(epochs: Sequence[int], curves: Mapping[str, Sequence[float | None]], title: str) -> bytes:
    """Draw a metric by epoch.

    Args:
        epochs: `n` numbers of epochs.
        curves: one or two curves by name, with `n` values each. A value that is None or not finite leaves a gap.
        title: name of the metric, with its unit.

    Returns:
        An SVG file, 5.2 by 3.2 inches, to show by itself or within a page. A page can set its colors with the CSS
        variables `--ink`, `--quiet`, `--winner`, `--other` and `--second`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), (stroke, color) in zip(curves.items(), _STROKES, strict=False):
        points = [math.nan if value is None or not math.isfinite(value) else value for value in values]
        marker = "o" if len(epochs) <= _MAX_MARKED_EPOCHS else None
        axes.plot(epochs, points, stroke, color=color, linewidth=2, marker=marker, markersize=4, label=name)
    _style(axes, title, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, labelcolor=INK)
    return _svg(figure, title)


def draw_reliability(reliability: Reliability, title: str) -> bytes:
    """Draw a reliability diagram above a histogram of confidence. On the diagonal, confidence equals accuracy.

    Args:
        reliability: images, mean confidence and accuracy of each bin.
        title: title of the diagram.

    Returns:
        An SVG file, 4.4 by 4.8 inches, with the CSS variables of `draw_curves`.
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


def draw_confusion(confusion: NDArray[np.int64], title: str) -> bytes:
    """Draw a confusion matrix without its zeros, shaded by the square root of each count's share of its row.

    Args:
        confusion: `[10, 10]`, images by true class (row) and predicted class (column).
        title: title of the chart.

    Returns:
        An SVG file, 6.6 by 5.4 inches, with the CSS variables of `draw_curves`.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(6.6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    shades = np.sqrt(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))
    for row, column in np.argwhere(confusion).tolist():
        color, weight = (SECOND, "bold") if row == column else (WINNER, "normal")
        alpha = float(shades[row, column]) * (0.5 if row == column else 0.75)
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="none", alpha=alpha))
        axes.text(
            column, row, str(confusion[row, column]), ha="center", va="center", fontsize=9, color=INK, fontweight=weight
        )
    classes = range(len(CLASS_NAMES))
    axes.set_xlim(-0.5, len(CLASS_NAMES) - 0.5)
    axes.set_ylim(len(CLASS_NAMES) - 0.5, -0.5)  # class 0 on top
    axes.set_xticks(classes, CLASS_NAMES, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(classes, CLASS_NAMES)
    _style(axes, title, "predicted", "true")
    axes.grid(visible=False)
    return _svg(figure, title)


def draw_class_mix(mixes: Mapping[str, Sequence[int]], title: str) -> bytes:
    """Draw the share of each class in one batch, or in two side by side.

    Args:
        mixes: images per class, in class order, by name of the batch. The most important batch comes first.
        title: title of the chart.

    Returns:
        An SVG file, 6.2 by 3.6 inches, with the CSS variables of `draw_curves`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(mixes)
    classes = np.arange(len(CLASS_NAMES))
    for number, ((name, counts), color) in enumerate(zip(mixes.items(), (SECOND, OTHER), strict=False)):
        shares = np.asarray(counts) / max(sum(counts), 1)
        axes.bar(classes + (number - (len(mixes) - 1) / 2) * width, shares, width=width, color=color, label=name)
    axes.set_xticks(classes, CLASS_NAMES, rotation=35, ha="right", rotation_mode="anchor")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    _style(axes, title, "")
    if len(mixes) > 1:
        axes.legend(frameon=False, labelcolor=INK)
    return _svg(figure, title)


@dataclass(frozen=True)
class Tile:
    """An image in a gallery."""

    pixels: NDArray[np.uint8] | None
    """`[28, 28]`. None if the image can't be shown."""
    lines: Sequence[str]
    """Short lines of text below the image. The first one is bold."""
    wrong: bool = False
    """Whether to highlight the last line."""
    name: str = ""
    """Short name next to the image, to refer to it elsewhere."""


def draw_gallery(tiles: Sequence[Tile]) -> bytes:
    """Draw images in rows of five, each at three times its size with its text below.

    Args:
        tiles: at least one image.

    Returns:
        An SVG file, 670 pixels wide, with embedded images and the CSS variables of `draw_curves`.
    """
    most_lines = max(len(tile.lines) for tile in tiles)
    height = _TILE_PICTURE + most_lines * _TILE_LINE + 20
    rows = math.ceil(len(tiles) / _TILES_PER_ROW)
    drawn = []
    for number, tile in enumerate(tiles):
        row, column = divmod(number, _TILES_PER_ROW)
        drawn.append(f'<g transform="translate({column * _TILE_WIDTH + 8} {row * height + 8})">{_tile(tile)}</g>')
    size = f'width="{_TILES_PER_ROW * _TILE_WIDTH}" height="{rows * height}"'
    style = f"font-family: sans-serif; font-size: 12px; fill: var(--ink, {INK})"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">{"".join(drawn)}</svg>'.encode()


def _tile(tile: Tile) -> str:
    size = f'width="{_TILE_PICTURE}" height="{_TILE_PICTURE}"'
    if tile.pixels is None:
        picture = f'<rect {size} style="fill: none; stroke: var(--quiet, {QUIET}); stroke-dasharray: 4"/>'
        picture += f'<text x="10" y="46" style="fill: var(--quiet, {QUIET})">no picture</text>'
    else:
        png = base64.b64encode(encode_png(tile.pixels)).decode()
        picture = f'<image {size} style="image-rendering: pixelated" href="data:image/png;base64,{png}"/>'
    texts = [f'<text x="{_TILE_PICTURE + 4}" y="12" style="fill: var(--quiet, {QUIET})">{escape(tile.name)}</text>']
    for number, line in enumerate(tile.lines):
        style = "font-weight: bold" if number == 0 else ""
        if tile.wrong and number == len(tile.lines) - 1:
            style = f"font-weight: bold; fill: var(--winner, {WINNER})"
        y = _TILE_PICTURE + (number + 1) * _TILE_LINE
        texts.append(f'<text y="{y}" style="{style}">{escape(line)}</text>')
    return picture + "".join(texts)


def standalone(svg: bytes) -> bytes:
    """Replace the CSS variables of a picture by its own colors and give it a white background, so it fits any page."""
    text = re.sub(r"var\(--\w+, (#[0-9a-f]{6})\)", r"\1", svg.decode())
    return re.sub(r"(<svg\b[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', text, count=1).encode()


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
    # Write text as text. The salt makes the ids depend on the title alone: the same each time, and unique in a page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(_OMITTED_METADATA) | {"Title": title}
        )
    text = buffer.getvalue().decode()
    # Remove matplotlib's other ids. Nothing refers to them, and they would not be unique in a page.
    text = re.sub(r' id="[\w.]+_\d+"', "", text[text.index("<svg") :])
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var(--{name}, {color})")
    return text.encode()
