"""Read lists with one JSON object per line."""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.lists.columns import Columns, find_columns, shown
from fmnist_model.formats.lists.entry import RawEntry, damaged, missing
from fmnist_model.formats.lists.lines import Line


def read_json_lines(
    lines: Iterable[Line], origin: str, *, location_column: str | None, label_column: str | None
) -> Iterator[RawEntry]:
    """Return the entries of a list of JSON objects. A JSON string alone is a location.

    Args:
        lines: lines of the file.
        origin: URI of the list, for error messages.
        location_column: the key of the locations, see `find_columns`.
        label_column: the key of the labels. An object without it has no label.

    Raises:
        InvalidDataset: the file is a JSON array, or an object over several lines.
    """
    find = lru_cache(1000)(lambda names: _find(names, origin, location_column, label_column))
    for position, line in enumerate(lines):
        if position == 0:
            _check_first(line, origin)
        if line.problem:
            yield damaged(line.number, line.problem)
            continue
        try:
            value = json.loads(line.text)
        except (ValueError, RecursionError) as error:
            yield damaged(line.number, f"isn't JSON: {error}")
            continue
        if isinstance(value, dict):
            yield _entry(line.number, value, find(tuple(value)))
        elif isinstance(value, str):
            yield RawEntry(line.number, ((value, None),))
        else:
            yield damaged(line.number, "is neither a JSON object nor a string")


def _check_first(line: Line, origin: str) -> None:
    start = line.text.strip()
    if start.startswith("[") or start == "{":
        found = "a JSON array" if start.startswith("[") else "a JSON object over several lines"
        raise InvalidDataset(
            f"{origin} is {found}. A list has one JSON object per line. Convert it, for example with: "
            "jq -c '.[]' list.json > list.jsonl"
        )


def _find(names: tuple[str, ...], origin: str, location_column: str | None, label_column: str | None) -> Columns | None:
    try:
        return find_columns(names, origin, location_column, label_column)
    except InvalidDataset:  # this object has no label
        return find_columns([*names, label_column or ""], origin, location_column, label_column)


def _entry(number: int, value: dict[str, Any], columns: Columns | None) -> RawEntry:
    cells = list(value.values())
    location = cells[columns.location] if columns is not None else None
    if isinstance(location, dict):  # Hugging Face's image
        location = location.get("path")
    if not isinstance(location, str) or columns is None:
        return missing(number, "line", f"has no location. Its keys are: {shown(list(value))}")
    label = cells[columns.label] if columns.label is not None and columns.label < len(cells) else None
    return RawEntry(number, ((location, None if label is None else str(label)),))
