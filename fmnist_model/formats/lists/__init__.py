"""Read lists of images, with optional labels, in the formats that people have.

Each kind of list is a module: `text` (a location per line), `delimited` (CSV), `json_lines` and `parquet`. A list can
have any number of entries. An entry that can't be parsed has a reason, and doesn't stop the others.
"""

import posixpath
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.lists.delimited import may_be_delimited, read_delimited
from fmnist_model.formats.lists.entry import ListEntry, Reading, parsed
from fmnist_model.formats.lists.json_lines import read_json_lines
from fmnist_model.formats.lists.lines import read_lines
from fmnist_model.formats.lists.parquet import is_parquet_list, read_parquet
from fmnist_model.formats.lists.text import read_text

__all__ = ["ListEntry", "Reading", "has_columns", "is_list_name", "is_parquet_list", "read_list", "resolve"]

_USUAL_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_TEXT_ENDINGS = (".txt", ".lst", ".list")

_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://|(?:file|s3[an]?):/", re.IGNORECASE)


def is_list_name(name: str) -> bool:
    """Return whether the name is that of a text, CSV or JSON list. For Parquet lists see `is_parquet_list`."""
    return name.lower().endswith((*_TEXT_ENDINGS, *_USUAL_DELIMITERS, *_JSON_ENDINGS))


def has_columns(name: str) -> bool:
    """Return whether a list of this name has named columns, of which one can be chosen for the labels."""
    return not name.lower().endswith(_TEXT_ENDINGS)


def read_list(
    file: Any, name: str, origin: str, *, location_column: str | None = None, label_column: str | None = None
) -> Iterator[list[ListEntry]]:
    """Read the entries of a list in order and in bounded memory, up to 10,000 at a time.

    Args:
        file: random-access `pyarrow.NativeFile` of the list.
        name: the list's file name. Its suffix decides the format: `.parquet`, `.csv`, `.tsv`, `.jsonl`, `.ndjson`, or
            else text. A text file whose first line names several columns is read as CSV.
        origin: URI of the list, for error messages.
        location_column: the column with the locations. Ignored if the list has none of this name.
        label_column: the column with the labels. By default it is found by name, and may be absent.

    Raises:
        InvalidDataset: the file is damaged, isn't a list, or has no such columns.
    """
    ending = posixpath.splitext(name.lower())[1]
    columns: Any = {"location_column": location_column, "label_column": label_column}
    if ending == ".parquet":
        yield from read_parquet(file, origin, **columns)
        return
    lines = read_lines(file, origin)
    first = list(islice(lines, 10))
    lines = chain(first, lines)
    if ending in _JSON_ENDINGS:
        yield from parsed(read_json_lines(lines, origin, **columns), origin)
    elif ending in _USUAL_DELIMITERS or may_be_delimited(first):
        yield from parsed(read_delimited(lines, origin, usual=_USUAL_DELIMITERS.get(ending, ","), **columns), origin)
    elif label_column is None:
        yield from parsed(read_text(lines), origin)
    else:
        raise InvalidDataset(
            f"{origin} is a text file, so it has no column '{label_column}'. Use CSV or Parquet for labels."
        )


def resolve(location: str, list_location: str) -> str:
    """Return the URI or absolute path of a listed image, as a user would type it.

    A relative path is relative to the list's folder. On S3, leading `.` and `..` are resolved. Others can be parts of a
    key. In a path they stay, because they depend on symbolic links.

    Args:
        location: URI or path as written in the list.
        list_location: absolute path of the list, or `s3://bucket/key` with the key as it is.

    Raises:
        InvalidDataset: the location is outside the list's bucket.
    """
    if _ABSOLUTE.match(location):
        return location
    folder = list_location.rpartition("/")[0]
    if list_location.startswith("/"):
        return f"{folder}/{location}"
    while found := re.match(r"(\.{1,2})/+", location):
        location = location[found.end() :]
        if found[1] == "..":
            folder = folder.rpartition("/")[0]
            if folder == "s3:/":
                raise InvalidDataset(
                    f"{list_location} lists ../{location}, which is outside its bucket. Correct the path."
                )
    return f"{folder}/{location}"
