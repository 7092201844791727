"""Read lists with columns: CSV with commas, semicolons, tabs or bars, quoted as in RFC 4180."""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats import container_kind
from fmnist_model.formats.lists.columns import (
    LOCATION_COLUMNS,
    Columns,
    find_columns,
    first_of,
    no_location_column,
    shown,
)
from fmnist_model.formats.lists.entry import RawEntry, damaged, missing
from fmnist_model.formats.lists.lines import MAX_LINE_BYTES, Line
from fmnist_model.formats.lists.text import is_label, readings_of
from fmnist_model.images.endings import UNSUPPORTED_IMAGE_SUFFIXES, is_image_name

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_LINES = 100
"""Lines that show the delimiter."""
_EVEN_SHARE = 0.9
"""Share of these lines that a delimiter must cut into the same number of columns."""
_MAX_RECORD_LINES = 100
"""Lines of a record with line breaks in quotes. Without a limit, a stray quote would take in the rest of the list."""


class _Record(NamedTuple):
    number: int
    """Number of its first line."""
    text: str
    """Its first line."""
    cells: list[str]
    problem: str = ""


def read_delimited(
    lines: Iterator[Line], origin: str, *, usual: str, location_column: str | None, label_column: str | None
) -> Iterator[RawEntry]:
    """Return the entries of a CSV file.

    Args:
        lines: lines of the file.
        origin: URI of the list, for error messages.
        usual: delimiter to prefer if several fit.
        location_column: see `find_columns`.
        label_column: see `find_columns`.

    Raises:
        InvalidDataset: it isn't clear which column has the locations or the labels.
    """
    held = _Lines(lines)
    yield from held.skip_comments()
    delimiter = _delimiter(held.sample(), usual, location_column)
    first = next(_records(_Lines(iter(held.sample())), delimiter), None)
    if first is None:
        return
    header = [_column_name(cell) for cell in first.cells]
    columns = find_columns(header, origin, location_column, label_column) if delimiter or label_column else None
    if columns is not None:
        next(_records(held, delimiter))
        yield from _with_header(_records(held, delimiter), columns, header)
    elif delimiter is None and label_column is None:
        yield from _one_column(_records(held, None))
    elif any(map(_is_location, first.cells)):
        columns = _positions(first.cells, origin, label_column)
        yield from _without_header(_records(held, delimiter), columns, len(first.cells))
    else:
        raise no_location_column(origin, first.cells)


def may_be_delimited(lines: Sequence[Line]) -> bool:
    """Return whether a text file starts with a header of several columns, one of which has locations."""
    first = next((line.text for line in lines if line.text and not line.text.startswith("#")), "")
    return _names_locations(first)


def _names_locations(line: str) -> bool:
    """Return whether a line is a header of several columns, one of which has locations."""
    headers = ([_column_name(cell) for cell in line.split(delimiter)] for delimiter in _DELIMITERS if delimiter in line)
    return any(first_of(header, LOCATION_COLUMNS) is not None for header in headers)


def _column_name(cell: str) -> str:
    return cell.strip().lstrip("#").strip(' "')


class _Lines:
    """Lines that can be put back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._rest = lines
        self._held: deque[Line] = deque()

    def sample(self) -> list[Line]:
        """Return the next lines without taking them."""
        self._held.extend(islice(self._rest, _SAMPLE_LINES - len(self._held)))
        return list(self._held)

    def skip_comments(self) -> Iterator[RawEntry]:
        """Take the unusable lines at the start, and those that start with `#` but aren't the header."""
        while (line := self.take()) is not None:
            if line.problem:
                yield damaged(line.number, line.problem)
            elif not line.text.startswith("#") or _names_locations(line.text):
                self.put_back([line])
                return

    def take(self) -> Line | None:
        """Return the next line, or None at the end."""
        return self._held.popleft() if self._held else next(self._rest, None)

    def put_back(self, lines: list[Line]) -> None:
        """Let the lines be the next ones again."""
        self._held.extendleft(reversed(lines))


def _records(lines: _Lines, delimiter: str | None) -> Iterator[_Record]:
    """Parse the remaining lines. Without a delimiter, each record is one cell."""
    while (line := lines.take()) is not None:
        if line.problem:
            yield _Record(line.number, "", [], line.problem)
        elif '"' in line.text:
            yield _quoted_record(line, lines, delimiter)
        else:
            yield _Record(line.number, line.text, [line.text] if delimiter is None else line.text.split(delimiter))


def _quoted_record(line: Line, lines: _Lines, delimiter: str | None) -> _Record:
    """Parse a record that may continue in the next lines. If it can't be parsed, only its first line is lost."""
    taken: list[Line] = []
    while True:
        text = "\n".join([line.text, *(more.text for more in taken)])
        try:
            # Lines have no NUL, so as a delimiter it makes one cell.
            [cells] = csv.reader([text], delimiter=delimiter or "\0", strict=True)
            return _Record(line.number, line.text, cells)
        except csv.Error as error:
            problem = str(error)
        following = lines.take() if "unexpected end of data" in problem else None
        if following is not None:
            taken.append(following)
        if following is None or following.problem or len(taken) == _MAX_RECORD_LINES or len(text) > MAX_LINE_BYTES:
            lines.put_back(taken)
            if delimiter is None:
                return _Record(line.number, line.text, [line.text])
            return _Record(line.number, line.text, [], f"can't be parsed: {problem}")


def _delimiter(sample: list[Line], usual: str, location_column: str | None) -> str | None:
    """Return the delimiter whose first record names a column of locations, or that cuts most lines evenly."""
    wanted = LOCATION_COLUMNS if location_column is None else (location_column, *LOCATION_COLUMNS)
    candidates = (usual, *(delimiter for delimiter in _DELIMITERS if delimiter != usual))
    even: dict[str, bool] = {}
    for delimiter in candidates:
        records = [record.cells for record in _records(_Lines(iter(sample)), delimiter) if not record.problem]
        width = len(records[0]) if records else 0
        if width > 1 and first_of([_column_name(cell) for cell in records[0]], wanted) is not None:
            return delimiter
        if width > 1 and sum(len(cells) == width for cells in records) >= _EVEN_SHARE * len(sample):
            even[delimiter] = width == 2 and any(map(is_label, records[0])) and any(map(_is_location, records[0]))
    return max(even, key=lambda delimiter: even[delimiter], default=None)


def _with_header(records: Iterator[_Record], columns: Columns, header: list[str]) -> Iterator[RawEntry]:
    for record in records:
        cells = record.cells
        if record.problem:
            yield damaged(record.number, record.problem)
        elif any(cell.strip() for cell in cells[len(header) :]):
            yield damaged(record.number, f"has {len(cells)} columns instead of {len(header)} ({shown(header)})")
        elif len(cells) <= columns.location or not cells[columns.location].strip():
            yield missing(record.number, "line")
        else:
            yield RawEntry(record.number, (_location_and_label(cells, columns),))


def _without_header(records: Iterator[_Record], columns: Columns, width: int) -> Iterator[RawEntry]:
    """Return the entries of a file without a header. A name of a file can contain the delimiter."""
    for record in records:
        if record.problem:
            yield damaged(record.number, record.problem)
        elif len(record.cells) == width:
            whole = (record.text, None)
            yield RawEntry(record.number, (whole, _location_and_label(record.cells, columns)))
        else:
            yield RawEntry(record.number, readings_of(record.text))


def _location_and_label(cells: list[str], columns: Columns) -> tuple[str, str | None]:
    labelled = columns.label is not None and columns.label < len(cells)
    return cells[columns.location], cells[columns.label or 0] if labelled else None


def _one_column(records: Iterator[_Record]) -> Iterator[RawEntry]:
    """Return the entries of a file without a delimiter. Any name of a column can be its header."""
    first = True
    for record in records:
        if record.problem:
            yield damaged(record.number, record.problem)
        elif not record.cells[0].strip():
            yield missing(record.number, "line")
        else:
            may_be_header = first and not _is_location(record.cells[0])
            yield RawEntry(record.number, readings_of(record.cells[0]), may_be_header=may_be_header)
        first = False


def _positions(cells: list[str], origin: str, label_column: str | None) -> Columns:
    """Find the columns of a list without a header by what is in the first line."""
    found = [number for number, cell in enumerate(cells) if _is_location(cell)]
    if label_column is None and len(found) == 1 and len(cells) == 2:
        return Columns(found[0], 1 - found[0])
    raise InvalidDataset(
        f"{origin} has no header that names its {len(cells)} columns. The first line is: {shown(cells)}. Add a first "
        "line with the names of the columns, such as path,label."
    )


def _is_location(cell: str) -> bool:
    name = cell.strip().lower()
    if is_label(name):
        return False
    if "/" in name or "\\" in name or name.endswith((*UNSUPPORTED_IMAGE_SUFFIXES,)):
        return True
    return is_image_name(name) or container_kind(name) is not None
