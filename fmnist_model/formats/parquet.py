"""Parquet files with a column of images: image files (binary, or Hugging Face's struct with `bytes`) or raw pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.interface import BATCH_BYTES, ContainerPiece, ImageBatch, even_cuts, row_fragments
from fmnist_model.formats.labels import describe_columns, find_label_column, label_array
from fmnist_model.images.decode import holds_images

IMAGE_COLUMNS = ("image", "img", "png", "jpg", "bytes", "pixels", "data")
"""A column of such a name holds the images, where the caller names none: the first that can."""

MAX_CUTS = 8
"""Of one row group. A piece that begins inside a row group reads and drops what is before it, so that cutting one into
n pieces reads it (n + 1) / 2 times: 4.5 times at most. Measured on a local file, to drop an image of 500 bytes takes
0.3 µs, one of 100 kB 40 µs."""

_PREBUFFERED_BYTES = BATCH_BYTES
"""Row groups are fetched whole, and together, up to this size; a larger one is streamed, a block at a time."""

_STREAM_BLOCK_BYTES = 4 * 2**20
_CHUNK_ROWS = 64
"""Decoded at once, where images differ in size: the mean size of a row group's images says little about the next few
(a dictionary of pages with one large picture many times over counts it once)."""


def pieces(
    file: Any,
    origin: str,
    *,
    target_rows: int,
    target_bytes: int,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Iterator[ContainerPiece]:
    """Cut a file between row groups, and inside those that are much larger than a piece is to be.

    Args:
        file: a random-access `pyarrow.NativeFile`; only its footer is read.
        origin: its URI, for messages.
        target_rows: images in a piece, at most if row groups are no larger.
        target_bytes: bytes of images in a piece, as they are in the file, likewise.
        image_column: the column with the images; found by name and type where it is not given.
        label_column: the column with the labels; found likewise, and may be missing then.

    Raises:
        InvalidDataset: it is no Parquet file, or the columns are not there.
    """
    parquet = _open(file, origin)
    metadata = parquet.metadata
    _Columns(parquet.schema_arrow, image_column, label_column, origin)
    first_row = rows = size = offset = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        group_bytes = _group_bytes(group)
        if rows and (rows + group.num_rows > target_rows or size + group_bytes > target_bytes):
            yield ContainerPiece(first_row, rows, offset, size)
            first_row, rows, size = first_row + rows, 0, 0
        offset = offset if rows else number
        cuts = min(MAX_CUTS, group.num_rows, round(max(group.num_rows / target_rows, group_bytes / target_bytes)))
        if cuts > 1:
            yield from _cut(first_row, group.num_rows, number, group_bytes, cuts)
            first_row += group.num_rows
        else:
            rows, size = rows + group.num_rows, size + group_bytes
    if rows:
        yield ContainerPiece(first_row, rows, offset, size)


def read(
    file: Any,
    origin: str,
    piece: ContainerPiece,
    *,
    batch_rows: int,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Iterator[ImageBatch]:
    """Read a piece's images; a label that is not 0 to 9, or no class's name, is null.

    Memory is bounded by some batches, by what is fetched of row groups (64 MiB, or a block of a larger one), and by the
    file's largest page: writers that make pages by rows alone may have put 1,024 photos into one.

    Raises:
        InvalidDataset: the file is damaged, or not the one that was cut into pieces.
    """
    row = piece.first_row
    parquet = _open(file, origin)
    columns = _Columns(parquet.schema_arrow, image_column, label_column, origin)
    with clear_parquet_errors(origin):
        chunks = _chunks(file, parquet.metadata, columns, piece, batch_rows)
        for batch in _batches(chunks, batch_rows):
            yield ImageBatch(row_fragments(row, len(batch)), batch.column("image"), batch.column("label"))
            row += len(batch)
    if row != piece.first_row + piece.rows:
        raise InvalidDataset(
            f"{origin} has {row - piece.first_row} images from row {piece.first_row} on, where {piece.rows} were "
            "planned: it was replaced since. Run the job again."
        )


@contextmanager
def clear_parquet_errors(origin: str) -> Iterator[None]:
    """Make pyarrow's errors about a Parquet file `InvalidDataset`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        # A store that fails for the moment is no fault of the file's; damage comes as an OSError too, without a number.
        if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
            raise
        raise InvalidDataset(f"{origin} can't be read as Parquet: {error}. Restore the file, or remove it.") from None


class _Columns:
    """The columns that are read."""

    def __init__(self, schema: pa.Schema, image_column: str | None, label_column: str | None, origin: str) -> None:
        self.image = find_image_column(schema, image_column, origin)
        self.label = find_label_column(schema, label_column, origin)
        self._kind = schema.field(self.image).type
        # Of a struct only the bytes are read, not the path or a thumbnail beside them.
        self._image_leaf = f"{self.image}.bytes" if pa.types.is_struct(self._kind) else self.image

    @property
    def selected(self) -> list[str]:
        return [self._image_leaf, self.label] if self.label is not None else [self._image_leaf]

    def chunk_rows(self, group: pq.RowGroupMetaData, batch_rows: int) -> int:
        """Rows of a row group to decode at once."""
        if pa.types.is_fixed_size_binary(self._kind):
            return batch_rows
        mean_bytes = _group_bytes(group) // max(1, group.num_rows)
        return int(max(1, min(batch_rows, _CHUNK_ROWS, BATCH_BYTES // max(1, mean_bytes))))


def find_image_column(schema: pa.Schema, image_column: str | None, origin: str) -> str:
    """The name of the column with the images: the one that the caller names, or else by `IMAGE_COLUMNS`, or the only.

    Raises:
        InvalidDataset: there is none, or several are as good.
    """
    candidates = [
        field.name for field in schema if schema.names.count(field.name) == 1 and holds_images(_plain(field.type))
    ]
    if image_column is not None:
        if image_column in candidates:
            return image_column
        raise InvalidDataset(
            f"{origin} needs one column '{image_column}' with image files or raw pixels; its columns are: "
            f"{describe_columns(schema)}."
        )
    for name in IMAGE_COLUMNS:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return str(candidates[0])
    raise InvalidDataset(
        f"{origin} has {'several columns that may be' if candidates else 'no column with'} images"
        f"{': name one' if candidates else ' (image files or raw pixels)'}. Its columns are: "
        f"{describe_columns(schema)}."
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _open(file: Any, origin: str) -> pq.ParquetFile:
    with clear_parquet_errors(origin):
        parquet = pq.ParquetFile(file)
    metadata = parquet.metadata
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise InvalidDataset(
            f"{origin} can't be read as Parquet: its footer is damaged. Restore the file, or remove it."
        )
    return parquet


def _group_bytes(group: pq.RowGroupMetaData) -> int:
    """Bytes of a row group, all columns and decompressed: image files are most of it, and hardly compressed.

    Those of the image column alone would be told by `group.column`, but that ends the process, past any exception,
    where a footer is damaged in one of some places (pyarrow 26).
    """
    return max(0, int(group.total_byte_size))


def _cut(first_row: int, rows: int, group: int, group_bytes: int, cuts: int) -> Iterator[ContainerPiece]:
    for begin, end in even_cuts(rows, cuts):
        yield ContainerPiece(first_row + begin, end - begin, group, group_bytes * end // rows)


def _chunks(
    file: Any, metadata: pq.FileMetaData, columns: _Columns, piece: ContainerPiece, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """A piece's rows, as columns `image` and `label`, few at a time."""
    groups_before = range(min(piece.offset, metadata.num_row_groups))
    to_skip = piece.first_row - sum(metadata.row_group(number).num_rows for number in groups_before)
    if to_skip < 0:
        return
    remaining = piece.rows
    for groups, size in _runs(metadata, piece.offset, to_skip + remaining):
        prebuffered = size <= _PREBUFFERED_BYTES
        # Without a buffer size, a column of a row group is read into memory whole.
        parquet = pq.ParquetFile(
            file, metadata=metadata, pre_buffer=prebuffered, buffer_size=0 if prebuffered else _STREAM_BLOCK_BYTES
        )
        rows = min(columns.chunk_rows(metadata.row_group(number), batch_rows) for number in groups)
        for chunk in parquet.iter_batches(rows, row_groups=groups, columns=columns.selected, use_threads=False):
            taken = chunk.slice(min(to_skip, len(chunk)), remaining)
            to_skip -= min(to_skip, len(chunk))
            remaining -= len(taken)
            if len(taken):
                yield _image_and_label(taken, columns)
            if remaining == 0:
                return


def _runs(metadata: pq.FileMetaData, first: int, rows: int) -> Iterator[tuple[list[int], int]]:
    """Row groups to be read by one call, with their bytes: from the first on, until they have so many rows."""
    groups: list[int] = []
    size = 0
    for number in range(first, metadata.num_row_groups):
        group = metadata.row_group(number)
        group_bytes = _group_bytes(group)
        if groups and size + group_bytes > _PREBUFFERED_BYTES:
            yield groups, size
            groups, size = [], 0
        groups.append(number)
        size += group_bytes
        rows -= group.num_rows
        if rows <= 0:
            break
    if groups:
        yield groups, size


def _image_and_label(rows: pa.RecordBatch, columns: _Columns) -> pa.RecordBatch:
    images = rows.column(columns.image)
    if pa.types.is_dictionary(images.type):
        images = images.dictionary_decode()
    labels = pa.nulls(len(rows), pa.int8()) if columns.label is None else label_array(rows.column(columns.label))
    return pa.record_batch([images, labels], names=["image", "label"])


def _batches(chunks: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Chunks put together to batches of about as many rows, and of no more than `BATCH_BYTES` or one row."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for chunk in chunks:
        for part in _small_parts(chunk):
            if held and (rows + len(part) > batch_rows or size + part.nbytes > BATCH_BYTES):
                batch = pa.concat_batches(held)
                held, rows, size = [], 0, 0  # before the batch is used: it is a copy
                yield batch
            held.append(part)
            rows += len(part)
            size += part.nbytes
    if held:
        yield pa.concat_batches(held)


def _small_parts(chunk: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if chunk.nbytes <= BATCH_BYTES or len(chunk) == 1:
        yield chunk
    else:
        half = len(chunk) // 2
        yield from _small_parts(chunk.slice(0, half))
        yield from _small_parts(chunk.slice(half))
