"""Markdown with tables and pictures in it, as Prefect's UI shows it: any text in it stands as it is."""

import base64
import re
import string
from collections.abc import Collection, Iterable, Sequence

from fmnist_model.reports.page import visible

_SIGNS = "".join(set(string.punctuation) - set(",./%-"))
"""What may be of markdown's or HTML's own signs, and is itself behind a backslash."""


def plain(text: str) -> str:
    """Text that is to stand as it is, on one line, in a paragraph or a table."""
    # Not by their numbers, which Prefect's older pages, the first that one sees, show as such.
    return re.sub(f"[{re.escape(_SIGNS)}]", r"\\\g<0>", visible(text))


def code(text: str) -> str:
    """The same in letters of equal width: names and addresses."""
    # Not between backticks, where no sign can be put behind a backslash.
    return f"<code>{plain(text)}</code>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Collection[str] = ()) -> str:
    """A table; head and cells are markdown. The columns whose heads are `numeric` are set right."""
    lines = [head, ["--:" if name in numeric else ":--" for name in head], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names, which are text, and values, which are markdown."""
    return "\n".join(["| | |", "| :-- | :-- |", *(f"| {plain(name)} | {value} |" for name, value in rows)])


def svg_picture(svg: bytes, description: str) -> str:
    """An SVG file as a picture."""
    return f"![{plain(description)}](data:image/svg+xml;base64,{base64.b64encode(svg).decode()})"
