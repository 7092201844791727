"""Read lists of images from text, CSV or Parquet files, with optional labels.

A text file has one location (a URI or path) per line. Empty lines and lines that start with `#` are skipped. A CSV
file is UTF-8 with quotes as in RFC 4180, and tab-separated if its name ends in `.tsv`. Its header names one of
`LOCATION_COLUMNS`. A single-column CSV file can have any header, or none.
"""

import codecs
import csv
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.forward import BLOCK_BYTES
from fmnist_model.formats.labels import (
    LABEL_COLUMNS,
    describe_columns,
    find_label_column,
    holds_text,
    parse_label,
    parse_labels,
)
from fmnist_model.formats.parquet import clear_parquet_errors
from fmnist_model.images.decode import holds_images
from fmnist_model.images.endings import is_image_name

LOCATION_COLUMNS = ("uri", "url", "path", "file", "image", "filename", "file_name")
"""Names of the column with the locations, in order of preference. Matching ignores case."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BATCH_ROWS = 10_000
_MAX_LINE_BYTES = 2**20


@dataclass(frozen=True)
class ListedImages:
    """Consecutive entries of a list."""

    locations: list[str]
    """URIs or paths as written in the list. `resolve` makes the paths absolute."""
    labels: list[int | None]
    """Class of each location, 0 to 9, or None if unknown."""


def is_list_name(name: str) -> bool:
    """Return whether the name is that of a text or CSV list. For Parquet lists see `is_uri_list`."""
    return name.lower().endswith((".txt", ".csv", ".tsv", ".lst"))


def is_uri_list(schema: pa.Schema) -> bool:
    """Return whether a Parquet file with this schema lists images: it has locations, and no images of its own."""
    holds_any = any(holds_images(field.type) for field in schema)
    return not holds_any and _parquet_location_column(schema) is not None


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
    if location.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location):
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


def read_list(file: Any, name: str, origin: str, *, label_column: str | None = None) -> Iterator[ListedImages]:
    """Read the entries of a list in order and in bounded memory, about 10,000 at a time.

    Args:
        file: random-access `pyarrow.NativeFile` of the list.
        name: the list's file name. Its suffix decides the format: `.parquet`, `.csv`, `.tsv`, or else text.
        origin: URI of the list, for error messages.
        label_column: the column with the labels. By default it is found by name, and may be absent.

    Raises:
        InvalidDataset: the file is damaged or not a list. The message names the line or row.
    """
    ending = posixpath.splitext(name.lower())[1]
    if ending == ".parquet":
        yield from _read_parquet(file, origin, label_column)
    elif ending in _DELIMITERS:
        yield from _read_csv(file, origin, _DELIMITERS[ending], label_column)
    elif label_column is None:
        yield from _read_text(file, origin)
    else:
        raise InvalidDataset(
            f"{origin} is a text file, so it has no column '{label_column}'. Use CSV or Parquet for labels."
        )


def _read_text(file: Any, origin: str) -> Iterator[ListedImages]:
    for _, lines in _line_blocks(file, origin):
        found = [line.removesuffix("\r") for line in lines if line.strip() and not line.startswith("#")]
        if found:
            yield ListedImages(found, [None] * len(found))


def _line_blocks(file: Any, origin: str) -> Iterator[tuple[int, list[str]]]:
    """Yield blocks of lines without `\\n`, with the number of the first line, counted from 1."""
    number, position, rest = 1, 0, b""
    while block := file.read_at(BLOCK_BYTES, position):
        data = block.removeprefix(codecs.BOM_UTF8) if position == 0 else block
        position += len(block)
        complete, newline, rest = (rest + data).rpartition(b"\n")
        if newline:
            yield number, _decode(complete, number, origin).split("\n")
            number += complete.count(b"\n") + 1
        if len(rest) > _MAX_LINE_BYTES:
            raise _bad_line(origin, number, f"it is longer than {_MAX_LINE_BYTES:,} bytes")
    if rest:
        yield number, [_decode(rest, number, origin)]


def _decode(data: bytes, number: int, origin: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _bad_line(origin, number + data.count(b"\n", 0, error.start), "it isn't UTF-8") from None
    if "\0" in text:
        raise _bad_line(origin, number + text.count("\n", 0, text.index("\0")), "it contains a NUL character")
    return text


def _bad_line(origin: str, number: int, reason: str) -> InvalidDataset:
    return InvalidDataset(f"{origin} has an invalid line {number:,}: {reason}. Correct the line, or exclude the file.")


def _read_csv(file: Any, origin: str, delimiter: str, label_column: str | None) -> Iterator[ListedImages]:
    rows = _csv_rows(file, origin, delimiter)
    number, first = next(rows, (0, []))
    if not first:
        return
    location, label = _csv_columns(first, label_column, origin)
    if len(first) == 1 and _is_location(first[0]):
        rows = chain([(number, first)], rows)
    batch = ListedImages([], [])
    for number, row in rows:
        if len(row) <= max(location, label) or not row[location]:
            raise _bad_line(origin, number, f"it has {len(row)} of {len(first)} columns, or an empty location")
        batch.locations.append(row[location])
        batch.labels.append(parse_label(row[label]) if label >= 0 else None)
        if len(batch.locations) == _BATCH_ROWS:
            yield batch
            batch = ListedImages([], [])
    if batch.locations:
        yield batch


def _csv_rows(file: Any, origin: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that aren't empty, each with the number of its last line."""
    lines = (f"{line}\n" for _, block in _line_blocks(file, origin) for line in block)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise _bad_line(origin, reader.line_num, str(error)) from None


def _csv_columns(header: list[str], label_column: str | None, origin: str) -> tuple[int, int]:
    """Return the index of the column with locations and of the one with labels, which is -1 without labels."""
    names = [name.strip().lower() for name in header]
    location = next((names.index(name) for name in LOCATION_COLUMNS if name in names), None)
    if location is None and len(header) == 1 and (_is_location(header[0]) or re.fullmatch(r"[\w .-]+", header[0])):
        location = 0
    if location is None:
        raise InvalidDataset(
            f"{origin} names no column of locations ({', '.join(LOCATION_COLUMNS)}) in line 1. Its columns are: "
            f"{', '.join(header)[:200]}."
        )
    if label_column is None:
        return location, next((names.index(name) for name in LABEL_COLUMNS if name in names), -1)
    if label_column not in header:
        raise InvalidDataset(f"{origin} has no column '{label_column}'. Its columns are: {', '.join(header)[:200]}.")
    return location, header.index(label_column)


def _is_location(cell: str) -> bool:
    return "/" in cell or is_image_name(cell)


def _read_parquet(file: Any, origin: str, label_column: str | None) -> Iterator[ListedImages]:
    row = 0
    with clear_parquet_errors(origin):
        # Without a buffer size, pyarrow reads a whole column of a row group into memory.
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK_BYTES)
        schema = parquet.schema_arrow
        location = _parquet_location_column(schema)
        if location is None:
            raise InvalidDataset(
                f"{origin} has no string column of locations ({', '.join(LOCATION_COLUMNS)}). Its columns are: "
                f"{describe_columns(schema)}."
            )
        label = find_label_column(schema, label_column, origin)
        columns = [location] if label is None else [location, label]
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            locations = batch.column(location).to_pylist()
            for number, found in enumerate(locations, row):
                if not found or "\0" in found:
                    raise InvalidDataset(
                        f"{origin} has no location in row {number:,} (from 0). Complete or remove the row."
                    )
            labels = [None] * len(locations) if label is None else parse_labels(batch.column(label)).to_pylist()
            yield ListedImages(locations, labels)
            row += len(locations)


def _parquet_location_column(schema: pa.Schema) -> str | None:
    texts = [field.name for field in schema if schema.names.count(field.name) == 1 and _is_text(field.type)]
    return next((found for name in LOCATION_COLUMNS for found in texts if found.lower() == name), None)


def _is_text(kind: pa.DataType) -> bool:
    return holds_text(kind.value_type if pa.types.is_dictionary(kind) else kind)
