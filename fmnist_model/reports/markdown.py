"""Write markdown with tables and pictures for Prefect's UI, with any text shown literally."""

import base64
import re
import string
from collections.abc import Collection, Iterable, Sequence

from fmnist_model.reports.page import printable

_SPECIAL = "".join(set(string.punctuation) - set(",./%-"))
"""Characters that may have a meaning in markdown or HTML."""


def escaped(text: str) -> str:
    """Escape text for a paragraph or a table cell, and put it on one line."""
    # Use backslashes, because Prefect's older UI, which is the default, shows numeric character references literally.
    return re.sub(f"[{re.escape(_SPECIAL)}]", r"\\\g<0>", printable(text))


def code(text: str) -> str:
    """Escape a name or an address, and set it in a monospace font."""
    # Don't use backticks, because a backslash escapes nothing between them.
    return f"<code>{escaped(text)}</code>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Collection[str] = ()) -> str:
    """Write a table.

    Args:
        head: names of the columns, as markdown.
        rows: cells of each row, as markdown.
        numeric: names of the columns to align right.
    """
    lines = [head, ["--:" if name in numeric else ":--" for name in head], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Write a table of facts: names, as text, and their values, as markdown."""
    return "\n".join(["| | |", "| :-- | :-- |", *(f"| {escaped(name)} | {value} |" for name, value in rows)])


def svg_picture(svg: bytes, description: str) -> str:
    """Embed an SVG file as a picture with a description."""
    return f"![{escaped(description)}](data:image/svg+xml;base64,{base64.b64encode(svg).decode()})"
