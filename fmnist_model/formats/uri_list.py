"""Lists of images by URI: text, CSV or Parquet, with labels where the list has them.

A text has one location a line; empty lines, and lines that begin with `#`, are passed over. A CSV file (`.tsv`: with
tabs) is UTF-8 with quotes as in RFC 4180, and has a header with one of `LOCATION_COLUMNS`, or a single column, whose
first line may be a header. Locations are taken as they are written: nothing is percent-decoded.
"""

import codecs
import csv
import posixpath
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.forward import BLOCK_BYTES
from fmnist_model.formats.labels import (
    LABEL_COLUMNS,
    describe_columns,
    find_label_column,
    holds_text,
    label_array,
    label_of,
)
from fmnist_model.formats.parquet import clear_parquet_errors
from fmnist_model.images.decode import holds_images, is_image_name

LOCATION_COLUMNS = ("uri", "url", "path", "file", "image", "filename", "file_name")
"""A column of such a name, in any case, holds the locations: the first of these."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BATCH_ROWS = 10_000
_MAX_LINE_BYTES = 2**20


class ListedImages(NamedTuple):
    """Consecutive entries of a list."""

    locations: list[str]
    """As they are written; see `resolve`."""
    labels: list[int | None]
    """0 to 9, None where unknown; one a location."""


def is_list_name(name: str) -> bool:
    """Whether a file of that name is taken for a list of images; a Parquet file may be one too (`is_uri_list`)."""
    return name.lower().endswith((".txt", ".csv", ".tsv", ".lst"))


def is_uri_list(schema: pa.Schema) -> bool:
    """Whether a Parquet file with that schema lists images: it holds none itself, and has a column of locations."""
    holds_any = any(holds_images(field.type) for field in schema)
    return not holds_any and _parquet_location_column(schema) is not None


def resolve(location: str, list_uri: str) -> str:
    """The URI or absolute path of a listed image: a relative path is relative to its list's folder.

    On S3 only `.` and `..` at its beginning are resolved, since others may be parts of a key.

    Args:
        location: as the list has it.
        list_uri: the list's own, `file://…` or `s3://…`.

    Raises:
        InvalidDataset: it leads out of the list's bucket.
    """
    if location.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location):
        return location
    scheme, _, path = list_uri.partition("://")
    folder = path.rpartition("/")[0]
    if scheme.lower() == "file":
        host, _, rest = f"{folder}/{location}".partition("/")
        return f"{scheme}://{host}{posixpath.normpath('/' + rest)}"
    while found := re.match(r"(\.{1,2})/+", location):
        location = location[found.end() :]
        if found[1] == "..":
            folder, slash, _ = folder.rpartition("/")
            if not slash:
                raise InvalidDataset(f"{list_uri} lists an image that is outside of its bucket: ../{location}.")
    return f"{scheme}://{folder}/{location}"


def read_list(file: Any, name: str, origin: str, *, label_column: str | None = None) -> Iterator[ListedImages]:
    """Read a list in its order, some ten thousand entries at a time, whatever its length.

    Args:
        file: a random-access `pyarrow.NativeFile`.
        name: the list's file name, whose ending says what it is: `.parquet`, `.csv`, `.tsv`, or else text.
        origin: its URI, for messages.
        label_column: the column with the labels; found by its name where it is not given, and may be missing then.

    Raises:
        InvalidDataset: it is no such list; the message names the line.
    """
    ending = posixpath.splitext(name.lower())[1]
    if ending == ".parquet":
        yield from _read_parquet(file, origin, label_column)
    elif ending in _DELIMITERS:
        yield from _read_csv(file, origin, _DELIMITERS[ending], label_column)
    elif label_column is None:
        yield from _read_text(file, origin)
    else:
        raise InvalidDataset(f"{origin} is a text without a column '{label_column}': give labels in CSV or Parquet.")


def _read_text(file: Any, origin: str) -> Iterator[ListedImages]:
    for _, lines in _line_blocks(file, origin):
        found = [line.removesuffix("\r") for line in lines if line.strip() and not line.startswith("#")]
        if found:
            yield ListedImages(found, [None] * len(found))


def _line_blocks(file: Any, origin: str) -> Iterator[tuple[int, list[str]]]:
    """Lines without `\\n`, many at a time, and the number of the first of them, from 1."""
    number, position, rest = 1, 0, b""
    while block := file.read_at(BLOCK_BYTES, position):
        begin = block.removeprefix(codecs.BOM_UTF8) if position == 0 else block
        position += len(block)
        complete, newline, rest = (rest + begin).rpartition(b"\n")
        if newline:
            yield number, _decoded(complete, number, origin).split("\n")
            number += complete.count(b"\n") + 1
        if len(rest) > _MAX_LINE_BYTES:
            raise _bad_line(origin, number, f"it is longer than {_MAX_LINE_BYTES:,} bytes")
    if rest:
        yield number, [_decoded(rest, number, origin)]


def _decoded(data: bytes, number: int, origin: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _bad_line(origin, number + data.count(b"\n", 0, error.start), "it is not UTF-8") from None
    if "\0" in text:
        raise _bad_line(origin, number + text.count("\n", 0, text.index("\0")), "there is a NUL in it")
    return text


def _bad_line(origin: str, number: int, reason: str) -> InvalidDataset:
    return InvalidDataset(f"{origin} is no list of images, or damaged, in line {number:,}: {reason}.")


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
            raise _bad_line(origin, number, f"it has {len(row)} of {len(first)} columns, or nothing where a URI goes")
        batch.locations.append(row[location])
        batch.labels.append(label_of(row[label]) if label >= 0 else None)
        if len(batch.locations) == _BATCH_ROWS:
            yield batch
            batch = ListedImages([], [])
    if batch.locations:
        yield batch


def _csv_rows(file: Any, origin: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the numbers of the lines in which they end."""
    lines = (f"{line}\n" for _, block in _line_blocks(file, origin) for line in block)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise _bad_line(origin, reader.line_num, str(error)) from None


def _csv_columns(header: list[str], label_column: str | None, origin: str) -> tuple[int, int]:
    """Numbers of the columns with locations and with labels, -1 where there are none."""
    names = [name.strip().lower() for name in header]
    location = next((names.index(name) for name in LOCATION_COLUMNS if name in names), None)
    if location is None and len(header) == 1 and (_is_location(header[0]) or re.fullmatch(r"[\w .-]+", header[0])):
        location = 0
    if location is None:
        raise InvalidDataset(
            f"{origin} line 1 names no column with URIs ({', '.join(LOCATION_COLUMNS)}); its columns are: "
            f"{', '.join(header)[:200]}."
        )
    if label_column is None:
        return location, next((names.index(name) for name in LABEL_COLUMNS if name in names), -1)
    if label_column not in header:
        raise InvalidDataset(f"{origin} has no column '{label_column}'; its columns are: {', '.join(header)[:200]}.")
    return location, header.index(label_column)


def _is_location(cell: str) -> bool:
    return "/" in cell or is_image_name(cell)


def _read_parquet(file: Any, origin: str, label_column: str | None) -> Iterator[ListedImages]:
    row = 0
    with clear_parquet_errors(origin):
        # Without a buffer size, a column of a row group is read into memory whole.
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK_BYTES)
        schema = parquet.schema_arrow
        location = _parquet_location_column(schema)
        if location is None:
            raise InvalidDataset(
                f"{origin} has no column of strings with URIs ({', '.join(LOCATION_COLUMNS)}); its columns are: "
                f"{describe_columns(schema)}."
            )
        label = find_label_column(schema, label_column, origin)
        columns = [location] if label is None else [location, label]
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            locations = batch.column(location).to_pylist()
            for number, found in enumerate(locations, row):
                if not found or "\0" in found:
                    raise InvalidDataset(f"{origin} row {number:,} (from 0) has no URI. Complete or remove it.")
            labels = [None] * len(locations) if label is None else label_array(batch.column(label)).to_pylist()
            yield ListedImages(locations, labels)
            row += len(locations)


def _parquet_location_column(schema: pa.Schema) -> str | None:
    texts = [field.name for field in schema if schema.names.count(field.name) == 1 and _is_text(field.type)]
    return next((found for name in LOCATION_COLUMNS for found in texts if found.lower() == name), None)


def _is_text(kind: pa.DataType) -> bool:
    return holds_text(kind.value_type if pa.types.is_dictionary(kind) else kind)
