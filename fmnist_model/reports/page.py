"""Render report pages: HTML files that load nothing else."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES


def render_page(template: str, **content: Any) -> str:
    """Fill in a template of this folder. Content is escaped, so that any text is shown literally.

    Args:
        template: file name of the template.
        content: variables of the template, by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fmnist_model.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": format_number, "printable": printable}
    return environment.get_template(template).render(class_names=CLASS_NAMES, **content)


def percent(share: float | None) -> str:
    """Format a share, 0 to 1, as a percentage. None and NaN become a dash."""
    return f"{share:.2%}" if share is not None and math.isfinite(share) else "-"


def format_number(value: Any) -> str:
    """Format a float with four significant digits, None and empty text as a dash, and anything else with `str`."""
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Put text on one line, with line breaks, control characters and changes of writing direction as escapes."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shortened(text: str, length: int = 48) -> str:
    """Cut off the start of a name that is too long, because the end of a path says more."""
    shown = printable(text)
    return shown if len(shown) <= length else f"…{shown[1 - length :]}"


def confusion_rows(counts: NDArray[np.int64]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Arrange the cells of a confusion matrix in rows by true class.

    Args:
        counts: `[10, 10]`, images by true class (row) and predicted class (column).

    Returns:
        Name of the true class and cells of each row. A cell has its `count`, its `shade`, 0 to 1 (the square root of
        its share of the row), and whether its predictions are `correct`.
    """
    # With the share itself as shade, one image in twenty would be invisible next to the other nineteen.
    shades = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return [
        (
            name,
            [
                {"count": int(count), "shade": f"{shade:.3f}", "correct": column == row}
                for column, (count, shade) in enumerate(zip(counts[row], shades[row], strict=True))
            ],
        )
        for row, name in enumerate(CLASS_NAMES)
    ]
