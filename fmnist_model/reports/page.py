"""Report pages: HTML that needs nothing beside it, and the figures in it."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES


def render_page(template: str, **content: Any) -> str:
    """Fill one of the templates beside this module; what is filled in stands as text, whatever letters it has."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fmnist_model.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "figure": figure, "visible": visible}
    return environment.get_template(template).render(class_names=CLASS_NAMES, **content)


def percent(share: float | None) -> str:
    """A share, 0 to 1, in hundredths; a dash where there is none."""
    return f"{share:.2%}" if share is not None and math.isfinite(share) else "-"


def figure(value: Any) -> str:
    """A number in as many digits as tell something; anything else as it is."""
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def visible(text: str) -> str:
    """A name on one line: line breaks, control characters and those that turn the writing round as escapes."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shortened(text: str, length: int = 48) -> str:
    """A name, its beginning left out where it is too long: the end of a path tells more."""
    shown = visible(text)
    return shown if len(shown) <= length else f"…{shown[1 - length :]}"


def confusion_rows(counts: NDArray[np.int64]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The cells of a confusion matrix by the name of their true class.

    Args:
        counts: `[10, 10]`, rows are true classes, columns predicted ones.

    Returns:
        Of each cell `count`, `shade` (0 to 1, the root of its share of the row) and `right`.
    """
    # The root, or one image in twenty could not be seen beside the nineteen.
    shades = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return [
        (
            name,
            [
                {"count": int(count), "shade": f"{shade:.3f}", "right": column == row}
                for column, (count, shade) in enumerate(zip(counts[row], shades[row], strict=True))
            ],
        )
        for row, name in enumerate(CLASS_NAMES)
    ]
