"""Markdown with tables and pictures in it, as Prefect's UI shows it: any text in it stands as it is."""

import base64
import re
from collections.abc import Collection, Iterable, Sequence

from fmnist_model.page import visible


def plain(text: str) -> str:
    """Text that is to stand as it is, on one line, in a paragraph or a table."""
    # A character that is written by its number is never part of markdown's or HTML's own signs.
    return re.sub(r"[^\w\s,./%…-]|_", lambda found: f"&#{ord(found[0])};", visible(text))


def code(text: str) -> str:
    """The same in letters of equal width: names and addresses."""
    # Not between backticks, where characters can't be written by their numbers and a table's | would end the cell.
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
