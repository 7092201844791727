"""Names of the columns of lists: which one holds the locations, and which one the labels."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.labels import LABEL_COLUMNS

LOCATION_COLUMNS = (
    *("uri", "path", "filepath", "file", "filename"),
    *("image", "imageuri", "imagepath", "imagefile", "imagefilename", "imagename", "imagefilepath"),
    *("img", "imguri", "imgpath", "imgfile", "imgname"),
    *("fileuri", "fullpath", "absolutepath", "abspath", "relativepath", "relpath", "localpath"),
    *("s3uri", "s3path", "s3url", "gcsuri", "location", "source", "sourceref", "src"),
    *("url", "imageurl", "imgurl", "fileurl", "cocourl"),
)
"""Names of the column with the locations, in order of preference.

Matching ignores case, everything but letters and digits, and a plural s: `Image_Path`, `image path` and `imagePaths`
are `imagepath`. URLs come last, since tables that also have paths have the URLs from which the files were downloaded.
"""

LIST_LABEL_COLUMNS = (
    *LABEL_COLUMNS,
    *("target", "category", "y", "classname", "labelname", "categoryname"),
    *("classid", "labelid", "categoryid", "targetid", "groundtruth", "truelabel"),
)
"""Names of the column with the labels, in order of preference. Matching is the same as for `LOCATION_COLUMNS`."""

_SHOWN = 300
"""Characters of the columns to show in an error message."""


class Columns(NamedTuple):
    """Indices of the columns to read."""

    location: int
    label: int | None


def find_columns(
    names: Sequence[str], origin: str, location_column: str | None, label_column: str | None
) -> Columns | None:
    """Find the columns with locations and labels by their names.

    Args:
        names: names of the columns that can be one.
        origin: URI of the list, for error messages.
        location_column: name of the column with the locations. Ignored if the list has none of this name.
        label_column: name of the column with the labels, or None to look for `LIST_LABEL_COLUMNS`.

    Returns:
        The indices, or None if no name is that of a column of locations.

    Raises:
        InvalidDataset: there is no column `label_column`.
    """
    location = _named(names, location_column)
    if location is None:
        location = first_of(names, LOCATION_COLUMNS)
    if location is None:
        return None
    if label_column is None:
        others = ["" if number == location else name for number, name in enumerate(names)]
        return Columns(location, first_of(others, LIST_LABEL_COLUMNS))
    label = _named(names, label_column)
    if label is None:
        raise InvalidDataset(f"{origin} has no column '{label_column}'. Its columns are: {shown(names)}.")
    return Columns(location, label)


def first_of(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Return the index of the first wanted name that is among the names, or None."""
    plain = [plain_name(name) for name in names]
    for name in map(plain_name, wanted):
        if name in plain:
            return plain.index(name)
    return None


def plain_name(name: str) -> str:
    """Return a name without everything that matching ignores."""
    letters = re.sub(r"[\W_]", "", name.lower())
    return letters.removesuffix("s") if len(letters) > 2 and not letters.endswith("ss") else letters


def no_location_column(origin: str, names: Sequence[str]) -> InvalidDataset:
    """Return the error about a list in which no column has the name of one of locations."""
    return InvalidDataset(
        f"{origin} has no column that its name shows to hold locations of images, such as path, file, image or uri. "
        f"Its columns are: {shown(names)}. Rename the right one to 'path', or name it with --image-column."
    )


def shown(names: Sequence[str]) -> str:
    """List the names of columns for an error message."""
    text = ", ".join(names)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _named(names: Sequence[str], wanted: str | None) -> int | None:
    if wanted in names:
        return names.index(wanted)
    lower = [name.strip().lower() for name in names]
    return lower.index(wanted.strip().lower()) if wanted is not None and wanted.strip().lower() in lower else None
