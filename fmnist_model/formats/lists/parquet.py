"""Read Parquet files with a column of locations, and tell them from Parquet files with images."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fmnist_model.formats.forward import BLOCK_BYTES
from fmnist_model.formats.labels import class_names_of, find_label_column, holds_labels, holds_text, parse_labels
from fmnist_model.formats.lists.columns import (
    LIST_LABEL_COLUMNS,
    LOCATION_COLUMNS,
    Columns,
    find_columns,
    first_of,
    no_location_column,
)
from fmnist_model.formats.lists.entry import (
    BATCH_ENTRIES,
    MAX_LOCATION_BYTES,
    ListEntry,
    RawEntry,
    Reading,
    checked,
    missing,
)
from fmnist_model.formats.lists.lines import decoded_line
from fmnist_model.formats.parquet import IMAGE_COLUMNS, clear_parquet_errors
from fmnist_model.images.decode import holds_images

_ROWS_TO_LOOK_AT = 100
_START_BYTES = 256
"""Rows, and bytes of each value, that show what a binary column holds."""

_BATCH_BYTES = 32 * 2**20
"""Bytes of locations in a batch, as far as the file tells them."""

_LARGEST_DICTIONARY_BYTES = 4 * 2**20
"""Dictionary up to which each row of a batch may have the largest value. Most writers stop at 1 MiB."""

_IMAGE_STARTS = (
    *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF"),
    *(b"\0\0\0\x0cJXL ", b"\xff\x0a", b"\0\0\0\x0cjP  "),
)


def is_parquet_list(file: Any, origin: str, *, location_column: str | None = None) -> bool:
    """Return whether a Parquet file lists images: it has locations, and no images of its own.

    A binary column holds images if its name says so (`IMAGE_COLUMNS`), or if one of its first values starts as an image
    file does. Others hold hashes, embeddings and the like.

    Args:
        file: random-access `pyarrow.NativeFile`.
        origin: URI of the file, for error messages.
        location_column: name of the column with the locations, if it isn't found by name.

    Raises:
        InvalidDataset: the file is damaged.
    """
    with clear_parquet_errors(origin):
        parquet = _open(file)
        location = _columns(file, parquet, origin, location_column, None)
        if location is None:
            return False
        return not any(
            number != location.location and _has_images(file, parquet, field)
            for number, field in enumerate(parquet.schema_arrow)
        )


def read_parquet(
    file: Any, origin: str, *, location_column: str | None = None, label_column: str | None = None
) -> Iterator[list[ListEntry]]:
    """Read the entries of a Parquet list in batches.

    Args:
        file: random-access `pyarrow.NativeFile`.
        origin: URI of the list, for error messages.
        location_column: name of the column with the locations. Ignored if the list has none of this name.
        label_column: name of the column with the labels. By default it is found by name, and may be absent.

    Raises:
        InvalidDataset: the file is damaged, or has no such columns.
    """
    row = 0
    with clear_parquet_errors(origin):
        parquet = _open(file)
        columns = _columns(file, parquet, origin, location_column, label_column)
        names = parquet.schema_arrow.names
        if columns is None:
            raise no_location_column(origin, [f"{field.name} ({field.type})" for field in parquet.schema_arrow])
        location, label = names[columns.location], None if columns.label is None else names[columns.label]
        selected = [location] if label is None else [location, label]
        names_of_classes = class_names_of(parquet.schema_arrow, label)
        held: list[ListEntry] = []
        for batch in _batches(file, parquet, location, selected):
            labels: list[int | None] = [None] * len(batch)
            if label is not None:
                labels = parse_labels(batch.column(label), names=names_of_classes, origin=origin).to_pylist()
            texts = _texts(batch.column(location))
            held += [
                checked(missing(number, "row") if text is None else RawEntry(number), (Reading(text or "", one),))
                for number, (text, one) in enumerate(zip(texts, labels, strict=True), row)
            ]
            row += len(batch)
            if len(held) >= BATCH_ENTRIES:
                yield held
                held = []
        if held:
            yield held


def _batches(
    file: Any, parquet: pq.ParquetFile, location: str, selected: list[str], most_rows: int = BATCH_ENTRIES
) -> Iterator[pa.RecordBatch]:
    """Read columns in batches of bounded size, although a few bits of the file can stand for a huge value."""
    rows = min(most_rows, _BATCH_BYTES // max(1, _mean_bytes(parquet, location)))
    largest = max((_dictionary_bytes(file, column) for column in _chunks(parquet, location)), default=0)
    if largest > _LARGEST_DICTIONARY_BYTES:
        # A value is copied once, however many rows have it. But the values of a row group stay in memory.
        parquet = _open(file, location)
    elif largest:
        rows = min(rows, _BATCH_BYTES // largest)
    yield from parquet.iter_batches(max(1, rows), columns=selected, use_threads=False)


def _dictionary_bytes(file: Any, column: pq.ColumnChunkMetaData) -> int:
    """Return the decompressed size of a column's dictionary, which its largest value can't exceed."""
    if not column.has_dictionary_page:
        return 0
    # A page starts with its type and its size, as integers of Thrift's compact protocol.
    header = file.read_at(16, column.dictionary_page_offset)
    if header[:3] != b"\x15\x04\x15":
        return int(column.total_uncompressed_size)
    value = 0
    for position, byte in enumerate(header[3:13]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            break
    return value >> 1  # the last bit is the sign


def _open(file: Any, as_dictionary: str | None = None) -> pq.ParquetFile:
    # Without a buffer size, pyarrow reads a whole column of a row group into memory.
    dictionaries = [as_dictionary] if as_dictionary is not None else None
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK_BYTES, read_dictionary=dictionaries)


def _columns(
    file: Any, parquet: pq.ParquetFile, origin: str, location_column: str | None, label_column: str | None
) -> Columns | None:
    schema = parquet.schema_arrow
    unique = [field if schema.names.count(field.name) == 1 else pa.field("", pa.null()) for field in schema]
    locations = [field.name if _holds_locations(file, parquet, field) else "" for field in unique]
    found = find_columns(locations, origin, location_column, None)
    if found is None:
        return None
    if label_column is not None:
        named = find_label_column(schema, label_column, origin)
        return Columns(found.location, schema.names.index(named))
    labels = [field.name if holds_labels(field.type) else "" for field in unique]
    labels[found.location] = ""
    return Columns(found.location, first_of(labels, LIST_LABEL_COLUMNS))


def _holds_locations(file: Any, parquet: pq.ParquetFile, field: pa.Field) -> bool:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if holds_text(kind):
        return True
    if field.name in IMAGE_COLUMNS or not _is_binary(kind) or first_of([field.name], LOCATION_COLUMNS) is None:
        return False
    # Some writers don't mark text as such.
    return any(
        not _starts_like_an_image(value) and b"\0" not in value for value in _first_values(file, parquet, field)[:1]
    )


def _has_images(file: Any, parquet: pq.ParquetFile, field: pa.Field) -> bool:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if field.name in IMAGE_COLUMNS or not _is_binary(kind):
        return bool(holds_images(kind) and not (pa.types.is_list(kind) and field.name not in IMAGE_COLUMNS))
    return any(map(_starts_like_an_image, _first_values(file, parquet, field)))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _starts_like_an_image(value: bytes) -> bool:
    return value.startswith(_IMAGE_STARTS) or value[4:8] == b"ftyp"


def _first_values(file: Any, parquet: pq.ParquetFile, field: pa.Field) -> list[bytes]:
    """Return the starts of the first values that aren't null."""
    batch = next(_batches(file, parquet, field.name, [field.name], _ROWS_TO_LOOK_AT), None)
    values = [] if batch is None else _starts(batch.column(0), _START_BYTES)
    return [value for value in values if value is not None]


def _mean_bytes(parquet: pq.ParquetFile, name: str) -> int:
    """Return the mean size of a column's values, as the footer counts it."""
    chunks = list(_chunks(parquet, name))
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    return int(size // max(1, sum(chunk.num_values for chunk in chunks)))


def _chunks(parquet: pq.ParquetFile, name: str) -> Iterator[pq.ColumnChunkMetaData]:
    for group in range(parquet.metadata.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        columns = map(metadata.column, range(metadata.num_columns))
        yield from (column for column in columns if column.path_in_schema == name)


def _texts(column: pa.Array) -> list[str | None]:
    values = _starts(column, MAX_LOCATION_BYTES + 1)
    return [None if value is None else decoded_line(value) for value in values]


def _starts(column: pa.Array, size: int) -> list[bytes | None]:
    """Return the first bytes of each value, so that huge values aren't converted."""
    dictionary = pa.types.is_dictionary(column.type)
    values = column.dictionary if dictionary else column
    starts = pc.binary_slice(values.cast(pa.large_binary()), 0, size)
    found: list[bytes | None] = (starts.take(column.indices) if dictionary else starts).to_pylist()
    return found
