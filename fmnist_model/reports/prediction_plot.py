"""Plot images with their predicted probabilities."""

import io
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.description import Description, ImageDescription
from fmnist_model.reports.palette import INK, OTHER, QUIET, WINNER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_IMAGES = 24
"""Maximum number of images in a plot: 8 rows of 3."""

_DOTS_PER_INCH = 100
_TILE_WIDTH, _TILE_HEIGHT = 5.2, 2.55
_MARGIN, _GAP, _NOTE_HEIGHT = 0.2, 0.35, 0.4
_PICTURE_SIZE, _LABELS_WIDTH = 2.05, 1.1
"""Sizes in inches. A tile has a title of two lines above a square image, class names and bars."""

_MIN_SHARE_SHOWN = 0.0005
"""Smallest probability to print next to its bar. Smaller ones would all read 0.0%."""


def plot_predictions(pixels: NDArray[np.uint8], description: Description) -> bytes:
    """Plot each image next to the probabilities of its classes.

    Args:
        pixels: the described images, uint8 `[n, 28, 28]`. If there are more than 24, the plot shows the first 24 and a
            note.
        description: description of these images.

    Returns:
        A PNG file, 560 to 1,670 pixels wide.

    Raises:
        ValueError: `pixels` is empty, or the description has another number of images.
    """
    from matplotlib.figure import Figure

    n = len(description.images)
    if len(pixels) != n:
        raise ValueError(f"There are {len(pixels)} images, but the description has {n}. Pass the images it describes.")
    if not n:
        raise ValueError("A plot needs at least one image.")
    shown = min(n, MAX_IMAGES)
    columns = _columns(shown)
    rows = math.ceil(shown / columns)
    note_height = _NOTE_HEIGHT if n > shown else 0.0
    width = 2 * _MARGIN + columns * _TILE_WIDTH + (columns - 1) * _GAP
    height = 2 * _MARGIN + rows * _TILE_HEIGHT + (rows - 1) * _GAP + note_height
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, facecolor="white")
    for slot in range(shown):
        row, column = divmod(slot, columns)
        left = _MARGIN + column * (_TILE_WIDTH + _GAP)
        top = height - _MARGIN - row * (_TILE_HEIGHT + _GAP)
        _draw_tile(figure, left, top, pixels[slot], description.images[slot])
    if n > shown:
        note = f"The first {shown} of {n:,} images"
        figure.text(_MARGIN / width, _MARGIN / height, note, fontsize=10, color=QUIET, va="bottom")
    return _png(figure)


def _columns(n: int) -> int:
    """Return the number of tiles per row: three, unless fewer look better."""
    return {1: 1, 2: 2, 4: 2}.get(n, 3)


def _draw_tile(figure: "Figure", left: float, top: float, pixels: NDArray[np.uint8], image: ImageDescription) -> None:
    """Draw an image with its title and bars. `left` and `top` are in inches from the figure's lower left corner."""
    width, height = figure.get_size_inches()
    verdict = f"{image.predicted_label}  {image.confidence:.1%}"
    _draw_name(figure, left, top, image.name)
    figure.text(left / width, (top - 0.21) / height, verdict, fontsize=11, fontweight="bold", color=WINNER, va="top")
    bottom = (top - _TILE_HEIGHT) / height
    high = _PICTURE_SIZE / height
    picture = figure.add_axes((left / width, bottom, _PICTURE_SIZE / width, high))
    picture.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    picture.set_axis_off()
    before_bars = _PICTURE_SIZE + _LABELS_WIDTH
    bars = figure.add_axes(((left + before_bars) / width, bottom, (_TILE_WIDTH - before_bars) / width, high))
    _draw_bars(bars, image)


def _draw_bars(axes: "Axes", image: ImageDescription) -> None:
    classes = range(len(CLASS_NAMES))
    colors = [WINNER if number == image.predicted_class else OTHER for number in classes]
    bars = axes.barh(classes, image.probabilities, height=0.72, color=colors)
    shares = [f"{share:.1%}" if share >= _MIN_SHARE_SHOWN else "" for share in image.probabilities]
    axes.bar_label(bars, shares, padding=3, fontsize=8, color=QUIET)
    axes.set_xlim(0, 1.3)  # room for "100.0%" right of a full bar
    axes.set_ylim(len(CLASS_NAMES) - 0.5, -0.5)  # class 0 on top
    axes.set_yticks(classes, CLASS_NAMES, fontsize=9, color=INK)
    axes.tick_params(left=False, bottom=False, labelbottom=False, pad=4)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(OTHER)
    winner = axes.get_yticklabels()[image.predicted_class]
    winner.set(color=WINNER, fontweight="bold")


def _draw_name(figure: "Figure", left: float, top: float, name: str) -> None:
    """Draw a name on one line. Cut off its start if it is too long, because the end of a path says more."""
    width, height = figure.get_size_inches()
    # File names may contain line breaks and bytes that are not UTF-8.
    name = " ".join(name.split()).encode("utf-8", "replace").decode()
    # Without parse_math, matplotlib doesn't read a name between two dollar signs as a formula.
    text = figure.text(left / width, top / height, name, fontsize=9, color=QUIET, va="top", parse_math=False)
    with _missing_glyphs_ignored():
        while text.get_window_extent().width > _TILE_WIDTH * figure.dpi:
            name = name[max(1, len(name) // 20) :]
            text.set_text(f"…{name}")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with _missing_glyphs_ignored():
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    return buffer.getvalue()


def _missing_glyphs_ignored() -> "warnings.catch_warnings[None]":
    """Silence the warnings about characters that the font lacks and that are drawn as boxes."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
