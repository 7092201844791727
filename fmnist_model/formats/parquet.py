"""Read Parquet files with a column of images.

A column holds image files, as binary or as Hugging Face's struct with a field `bytes`, or raw pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.errors import InvalidDataset, one_line
from fmnist_model.formats.interface import BATCH_BYTES, ContainerPiece, ImageBatch, even_cuts, row_fragments
from fmnist_model.formats.labels import class_names_of, describe_columns, find_label_column, parse_labels
from fmnist_model.images.decode import holds_images

IMAGE_COLUMNS = ("image", "img", "png", "jpg", "bytes", "pixels", "data")
"""Default names of the column with the images, in order of preference."""

MAX_CUTS = 8
"""Maximum number of pieces per row group.

A piece that starts inside a row group reads and drops the rows before it. So n pieces read the row group (n + 1) / 2
times, which is at most 4.5 times. On a local file, dropping an image takes 0.3 µs at 500 bytes and 40 µs at 100 kB.
"""

_PREBUFFERED_BYTES = BATCH_BYTES
"""Maximum total size of row groups that are fetched whole and together. A larger one is streamed in blocks."""

_STREAM_BLOCK_BYTES = 4 * 2**20

_CHUNK_ROWS = 64
"""Maximum number of rows to decode at once if images vary in size.

The mean size in a row group says little about the next few images. For example, a dictionary-encoded page counts a
large image that it repeats only once.
"""


def pieces(
    file: Any,
    origin: str,
    *,
    target_rows: int,
    target_bytes: int,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Iterator[ContainerPiece]:
    """Cut a file between row groups, and also inside row groups that are much larger than the target.

    Args:
        file: random-access `pyarrow.NativeFile`. Only its footer is read.
        origin: URI of the file, for error messages.
        target_rows: maximum number of images per piece, unless one row group has more.
        target_bytes: maximum number of decompressed bytes per piece, unless one row group has more.
        image_column: the column with the images. By default it is found by name and type.
        label_column: the column with the labels. By default it is found by name and type, and may be absent.

    Raises:
        InvalidDataset: the file can't be read as Parquet, or lacks a column.
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
    """Read the images of a piece and their labels.

    Labels are null if they are neither 0 to 9 nor the name of a class. See `fmnist_model.formats.read` for the
    arguments.

    Memory use is bounded by a few batches, the fetched row groups (64 MiB, or a block of a larger one), and the file's
    largest page. Pages can be large, because some writers limit only their rows and put, say, 1,024 photos into one.

    Raises:
        InvalidDataset: the file is damaged, or has changed since it was cut into pieces.
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
            f"{origin} has {row - piece.first_row} images from row {piece.first_row}, but {piece.rows} were planned. "
            "The file was replaced after planning. Run the job again."
        )


@contextmanager
def clear_parquet_errors(origin: str) -> Iterator[None]:
    """Raise pyarrow's errors about a Parquet file as `InvalidDataset`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # a column's name may raise UnicodeDecodeError
        # Let errors of the store pass. pyarrow reports damage as an OSError too, but without an errno.
        if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
            raise
        raise InvalidDataset(
            f"{origin} can't be read as Parquet: {one_line(error)}. Restore or remove the file."
        ) from None


class _Columns:
    """Columns to read, found in a file's schema."""

    def __init__(self, schema: pa.Schema, image_column: str | None, label_column: str | None, origin: str) -> None:
        self.image = find_image_column(schema, image_column, origin)
        self.label = find_label_column(schema, label_column, origin)
        self._class_names = class_names_of(schema, self.label)
        self._origin = origin
        self._kind = schema.field(self.image).type
        # Read only the bytes of a struct, not its path or other fields.
        self._image_leaf = f"{self.image}.bytes" if pa.types.is_struct(self._kind) else self.image

    @property
    def selected(self) -> list[str]:
        return [self._image_leaf, self.label] if self.label is not None else [self._image_leaf]

    def labels_of(self, rows: pa.RecordBatch) -> pa.Int16Array:
        """Return the classes of rows, null where unknown."""
        if self.label is None:
            return pa.nulls(len(rows), pa.int16())
        return parse_labels(rows.column(self.label), names=self._class_names, origin=self._origin)

    def chunk_rows(self, group: pq.RowGroupMetaData, batch_rows: int) -> int:
        """Return the number of rows of a row group to decode at once."""
        if pa.types.is_fixed_size_binary(self._kind):
            return batch_rows
        mean_bytes = _group_bytes(group) // max(1, group.num_rows)
        return int(max(1, min(batch_rows, _CHUNK_ROWS, BATCH_BYTES // max(1, mean_bytes))))


def find_image_column(schema: pa.Schema, image_column: str | None, origin: str) -> str:
    """Find the column with the images.

    Args:
        schema: columns of the file.
        image_column: name of the column, or None to try `IMAGE_COLUMNS` and then the only column of images.
        origin: URI of the file, for error messages.

    Raises:
        InvalidDataset: no column can hold images, or several can and none has a default name.
    """
    candidates = [
        field.name for field in schema if schema.names.count(field.name) == 1 and holds_images(_plain(field.type))
    ]
    if image_column is not None:
        if image_column in candidates:
            return image_column
        raise InvalidDataset(
            f"{origin} needs exactly one column '{image_column}' of image files or raw pixels. Its columns are: "
            f"{describe_columns(schema)}."
        )
    for name in IMAGE_COLUMNS:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return str(candidates[0])
    if candidates:
        problem = f"has several columns that can hold images ({', '.join(candidates)}). Name one of them"
    else:
        problem = "has no column of image files or raw pixels"
    raise InvalidDataset(f"{origin} {problem}. Its columns are: {describe_columns(schema)}.")


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _open(file: Any, origin: str) -> pq.ParquetFile:
    with clear_parquet_errors(origin):
        parquet = pq.ParquetFile(file)
    metadata = parquet.metadata
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise InvalidDataset(f"{origin} can't be read as Parquet: its footer is damaged. Restore or remove the file.")
    return parquet


def _group_bytes(group: pq.RowGroupMetaData) -> int:
    """Return the decompressed size of a row group, all columns together.

    It approximates the size of the image column, which makes up most of a row group and hardly compresses. The exact
    size isn't available: with some damaged footers, `group.column` ends the process without an exception (pyarrow 26).
    """
    return max(0, int(group.total_byte_size))


def _cut(first_row: int, rows: int, group: int, group_bytes: int, cuts: int) -> Iterator[ContainerPiece]:
    for first, end in even_cuts(rows, cuts):
        yield ContainerPiece(first_row + first, end - first, group, group_bytes * end // rows)


def _chunks(
    file: Any, metadata: pq.FileMetaData, columns: _Columns, piece: ContainerPiece, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield a piece's rows in small chunks with the columns `image` and `label`."""
    groups_before = range(min(piece.offset, metadata.num_row_groups))
    to_skip = piece.first_row - sum(metadata.row_group(number).num_rows for number in groups_before)
    if to_skip < 0:
        return
    remaining = piece.rows
    for groups, size in _runs(metadata, piece.offset, to_skip + remaining):
        prebuffered = size <= _PREBUFFERED_BYTES
        # Without a buffer size, pyarrow reads a whole column of a row group into memory.
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
    """Yield runs of row groups to read by one call and their bytes, from group `first` until they have `rows` rows."""
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
    return pa.record_batch([images, columns.labels_of(rows)], names=["image", "label"])


def _batches(chunks: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Combine chunks into batches of at most `batch_rows` rows and `BATCH_BYTES` bytes, but at least one row."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for chunk in chunks:
        for part in _small_parts(chunk):
            if held and (rows + len(part) > batch_rows or size + part.nbytes > BATCH_BYTES):
                batch = pa.concat_batches(held)
                held, rows, size = [], 0, 0  # free the chunks first: the batch is a copy
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
