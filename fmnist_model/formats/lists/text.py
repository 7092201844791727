r"""Read lists with one location per line, optionally with a label.

A line is a location, or one of the following. A reading counts only if no file has the whole line as its name.

- a location and a label, separated by spaces, a comma, a semicolon or a bar: `val/cat 1.png 3`. The label is a number
  or the name of a class, so that a name with spaces stays whole.
- a location and a label separated by a tab, in any order
- index, label and location separated by tabs, as in MXNet's `.lst` files
- any of these with the location in quotes
"""

import re
from collections.abc import Iterable, Iterator

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.formats.lists.columns import LOCATION_COLUMNS, first_of
from fmnist_model.formats.lists.entry import RawEntry, damaged
from fmnist_model.formats.lists.lines import Line

_NAMES = (*CLASS_NAMES, "T-shirt", "top")
_NAME = "|".join(r"[\s_/-]?".join(re.findall(r"[^\W_]+", name)) for name in _NAMES)
_LABEL = rf"[+-]?\d{{1,9}}(?:\.\d{{0,9}})?|{_NAME}|nan|none|null|n/a"
_LAST_FIELD = re.compile(rf"[\s,;|]+(\"?)({_LABEL})\1\s*\Z", re.IGNORECASE)
_ONLY_LABEL = re.compile(rf"\s*\"?({_LABEL})\"?\s*", re.IGNORECASE)
_QUOTED = re.compile(r"""\s*(["'])(.+)\1\s*""")


def read_text(lines: Iterable[Line]) -> Iterator[RawEntry]:
    """Return the entries of a list. Lines that start with `#` are comments."""
    first = True
    for line in lines:
        if line.problem:
            yield damaged(line.number, line.problem)
        elif not line.text.startswith("#"):
            may_be_header = first and first_of([line.text], LOCATION_COLUMNS) is not None
            yield RawEntry(line.number, readings_of(line.text), may_be_header=may_be_header)
            first = False


def readings_of(line: str) -> tuple[tuple[str, str | None], ...]:
    """Return the locations and labels that a line can stand for, in order of preference."""
    found: list[tuple[str, str | None]] = [(line, None)]
    if "\t" in line:
        found += _tab_separated(line)
    if label := _LAST_FIELD.search(line):
        found.append((line[: label.start()], label[2]))
    if '"' in line or "'" in line:
        found += [(quoted[2], label) for location, label in found if (quoted := _QUOTED.fullmatch(location))]
    return tuple(reading for reading in found if reading[0].strip()) or ((line, None),)


def is_label(text: str) -> bool:
    """Return whether a text is a number or the name of a class."""
    return _ONLY_LABEL.fullmatch(text) is not None


def _tab_separated(line: str) -> Iterator[tuple[str, str | None]]:
    *others, last = line.split("\t")
    if all(map(is_label, others)) and not is_label(last):
        # The label, or index and label. With several labels, none of them is the class.
        yield last, others[-1] if len(others) <= 2 else None
    elif len(others) == 1:
        yield others[0], last
