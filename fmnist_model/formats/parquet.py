"""Read Parquet files with a column of images.

A column holds image files, as binary or as Hugging Face's struct with the fields `bytes` and `path`, or raw pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fmnist_model.errors import InvalidDataset, describe_unexpected, one_line
from fmnist_model.formats.content import what_it_is
from fmnist_model.formats.interface import (
    BATCH_BYTES,
    MAX_IMAGE_BYTES,
    ContainerPiece,
    ImageBatch,
    even_cuts,
    row_fragments,
    too_large,
)
from fmnist_model.formats.parquet_columns import IMAGE_COLUMNS, Columns, find_columns
from fmnist_model.formats.parquet_pages import ColumnChunk, FewerRows, PageGuard, PageTooLarge, read_column_chunks

__all__ = ["IMAGE_COLUMNS", "MAX_CUTS", "clear_parquet_errors", "pieces", "read"]

MAX_CUTS = 8
"""Maximum number of pieces per row group.

A piece that starts inside a row group reads and drops the rows before it. So n pieces read the row group (n + 1) / 2
times, which is at most 4.5 times. On a local file, dropping an image takes 0.3 µs at 500 bytes and 40 µs at 100 kB.
"""

_PREBUFFERED_BYTES = BATCH_BYTES
"""Maximum total size of row groups that are fetched whole and together. A larger one is streamed in blocks."""

_STREAM_BLOCK_BYTES = 4 * 2**20

_CHUNK_ROWS = 64
"""Maximum number of rows to decode at once if images vary in size."""

_GATHERED_BYTES = 4 * 2**20
"""Size at which chunks of rows aren't combined any further before their images and labels are taken out."""

_SAMPLE_ROWS = 16
"""Number of rows that show what a column holds."""


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
        file: random-access `pyarrow.NativeFile`. Only its footer is read, unless the names of its columns don't say
            which one holds images.
        origin: URI of the file, for error messages.
        target_rows: maximum number of images per piece, unless one row group has more.
        target_bytes: maximum number of decompressed bytes per piece, unless one row group has more.
        image_column: the column with the images. By default it is found by name and type.
        label_column: the column with the labels. By default it is found by name and type, and may be absent.

    Raises:
        NoImages: the file has no column of images.
        InvalidDataset: the file can't be read as Parquet, or lacks a named column.
    """
    metadata = _ImageFile(file, origin, image_column, label_column).metadata
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

    A damaged page costs the rows from there to the end of its row group. They have a reason, and the other row groups
    are read. Labels are null if they name no class. See `fmnist_model.formats.read` for the arguments.

    Memory use is bounded by a few batches, the fetched row groups (64 MiB, or a block of a larger one), and 1 GiB for
    the file's largest page. Pages can be large, because some writers limit only their rows and put, say, 1,024 photos
    into one.

    Raises:
        InvalidDataset: the footer is damaged, or the file has changed since it was cut into pieces.
    """
    row = piece.first_row
    images = _ImageFile(file, origin, image_column, label_column)
    for batch in _batches(_chunks(images, piece, batch_rows), batch_rows):
        yield ImageBatch(
            row_fragments(row, len(batch)),
            batch.column("image"),
            batch.column("label"),
            reasons=_texts_by_row(batch.column("reason")),
            paths=_texts_by_row(batch.column("path")),
        )
        row += len(batch)
    if row != piece.first_row + piece.rows:
        raise InvalidDataset(
            f"{origin} has {row - piece.first_row} images from row {piece.first_row}, but {piece.rows} were planned. "
            "The file was replaced after planning. Run the job again."
        )


@contextmanager
def clear_parquet_errors(origin: str, file: Any = None) -> Iterator[None]:
    """Raise errors about a Parquet file as `InvalidDataset`, and let those of its store pass.

    Args:
        origin: URI of the file, for error messages.
        file: the file that is read, to tell what it is instead of Parquet. It can have an attribute `failure`, the
            error of its store.
    """
    try:
        yield
    except InvalidDataset:
        raise
    except Exception as error:
        failure = getattr(file, "failure", None)
        if failure is not None:
            raise failure from None
        # Let errors of the store pass. pyarrow reports damage as an OSError too, but without an errno.
        if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
            raise
        known = isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError)
        problem = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
        found = "" if file is None else what_it_is(file)
        if found and found != "it is a Parquet file":
            problem = found
        raise InvalidDataset(f"{origin} can't be read as Parquet: {problem}. Restore or remove the file.") from None


class _ImageFile:
    """A Parquet file with a column of images."""

    def __init__(self, file: Any, origin: str, image_column: str | None, label_column: str | None) -> None:
        self.file = file
        self.origin = origin
        with clear_parquet_errors(origin, file):
            parquet = pq.ParquetFile(file)
            self.metadata: pq.FileMetaData = parquet.metadata
            self.schema: pa.Schema = parquet.schema_arrow
        self.group_rows = [self.metadata.row_group(number).num_rows for number in range(self.metadata.num_row_groups)]
        if min(self.group_rows, default=0) < 0 or sum(self.group_rows) != self.metadata.num_rows:
            raise InvalidDataset(
                f"{origin} can't be read as Parquet: its footer is damaged. Restore or remove the file."
            )
        with clear_parquet_errors(origin, file):
            self.columns = find_columns(self.schema, image_column, label_column, origin, self._sample)

    def column_chunks(self) -> list[list[ColumnChunk]]:
        """Return the selected column chunks of each row group."""
        found = read_column_chunks(self.file, self.origin)
        if len(found) != len(self.group_rows):
            raise InvalidDataset(f"{self.origin} has a damaged footer. Restore or remove the file.")
        return [[chunk for chunk in group if self.columns.selects(chunk.path)] for group in found]

    def _sample(self, name: str) -> pa.Array | None:
        """Return the first values of a column, or None if they can't be read."""
        columns = Columns(name, None, None, self.schema.field(name).type, self.origin)
        number = next((number for number, rows in enumerate(self.group_rows) if rows), None)
        if number is None:
            return None
        chunks = [chunk for chunk in read_column_chunks(self.file, self.origin)[number] if columns.selects(chunk.path)]
        reader = _GroupReader(self, columns, [number], chunks)
        for rows in (_SAMPLE_ROWS, 1):
            try:
                return next(reader.read(rows)).column(name)
            except Exception:  # noqa: BLE001 (a damaged page makes pyarrow raise many kinds of exception)
                if reader.failure is not None:
                    raise reader.failure from None
        return None


class _GroupReader:
    """Reads the image and label columns of some row groups."""

    def __init__(self, images: "_ImageFile", columns: Columns, groups: list[int], chunks: list[ColumnChunk]) -> None:
        self._images = images
        self._columns = columns
        self._groups = groups
        self._chunks = chunks
        self._guard: PageGuard | None = None
        size = sum(_group_bytes(images.metadata.row_group(number)) for number in groups)
        self._prebuffered = max(size, sum(chunk.size for chunk in chunks)) <= _PREBUFFERED_BYTES

    @property
    def failure(self) -> Exception | None:
        """The error of the file's store, if a read failed."""
        return self._guard.failure if self._guard else None

    @property
    def refusal(self) -> Exception | None:
        """Why a page was refused, if one was."""
        return self._guard.refusal if self._guard else None

    def read(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Read the rows from the first, `rows` at once.

        Raises:
            PageTooLarge, FewerRows: see there. pyarrow may raise its own instead, so see `refusal` and `failure`.
        """
        dictionaries = {field.name for field in self._images.schema if pa.types.is_dictionary(field.type)}
        widths = {
            field.name: field.type.byte_width
            for field in self._images.schema
            if pa.types.is_fixed_size_binary(field.type)
        }
        self._guard = PageGuard(self._images.file, self._chunks, rows, dictionaries, widths)
        # Without a buffer size, pyarrow reads a whole column of a row group into memory.
        parquet = pq.ParquetFile(
            self._guard.open(),
            metadata=self._images.metadata,
            pre_buffer=self._prebuffered,
            buffer_size=0 if self._prebuffered else _STREAM_BLOCK_BYTES,
        )
        yield from parquet.iter_batches(
            rows, row_groups=self._groups, columns=self._columns.selected, use_threads=False
        )


def _group_bytes(group: pq.RowGroupMetaData) -> int:
    """Return the decompressed size of a row group, all columns together.

    It approximates the size of the image column, which makes up most of a row group and hardly compresses.
    """
    return max(0, int(group.total_byte_size))


def _cut(first_row: int, rows: int, group: int, group_bytes: int, cuts: int) -> Iterator[ContainerPiece]:
    for first, end in even_cuts(rows, cuts):
        yield ContainerPiece(first_row + first, end - first, group, group_bytes * end // rows)


def _chunks(images: _ImageFile, piece: ContainerPiece, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield a piece's rows in small chunks with the columns `image`, `label`, `path` and `reason`."""
    first_group = min(piece.offset, len(images.group_rows))
    start = sum(images.group_rows[:first_group])
    if start > piece.first_row:
        return
    column_chunks = images.column_chunks()
    run = _Rows(images, column_chunks, batch_rows, piece.first_row, piece.first_row + piece.rows)
    for groups in _runs(images.metadata, first_group, piece.first_row - start + piece.rows):
        yield from run.read(groups, start)
        start += sum(images.group_rows[number] for number in groups)


class _Rows:
    """Reads the rows of a piece, whatever is damaged."""

    def __init__(
        self, images: _ImageFile, column_chunks: list[list[ColumnChunk]], batch_rows: int, row: int, end: int
    ) -> None:
        self._images = images
        self._column_chunks = column_chunks
        self._batch_rows = batch_rows
        self._row = row
        """Number of the next row to yield."""
        self._end = end

    def read(self, groups: list[int], start: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some row groups.

        If that fails, read the row groups one by one, and the one that fails row by row. The rows that still can't be
        read have a reason.

        Args:
            groups: numbers of consecutive row groups.
            start: number of the first row in the first row group.
        """
        end = min(self._end, start + sum(self._images.group_rows[number] for number in groups))
        rows = min(self._rows_at_once(number) for number in groups)
        chunks = [chunk for number in groups for chunk in self._column_chunks[number]]
        while self._row < end:
            reader = _GroupReader(self._images, self._images.columns, groups, chunks)
            try:
                yield from self._read_from_here(reader.read(rows), start, end)
                problem: Exception = EOFError("it has fewer rows than the footer says")
            except Exception as error:  # noqa: BLE001 (a damaged page makes pyarrow raise many kinds of exception)
                if reader.failure is not None:
                    raise reader.failure from None
                problem = reader.refusal or error
            if self._row >= end:
                return
            if isinstance(problem, FewerRows) and problem.rows < rows:
                rows = problem.rows
            elif len(groups) > 1:
                for number in groups:
                    yield from self.read([number], start)
                    start += self._images.group_rows[number]
                return
            elif rows > 1 and not isinstance(problem, PageTooLarge):
                rows = 1
            else:
                yield from self._give_up(end, _reason(problem, groups[0]))

    def _read_from_here(self, found: Iterator[pa.RecordBatch], start: int, end: int) -> Iterator[pa.RecordBatch]:
        for chunk in _gathered(found, self._batch_rows):
            to_skip = max(0, self._row - start)
            start += len(chunk)
            taken = chunk.slice(min(to_skip, len(chunk)), end - self._row)
            for part in self._images.columns.split(taken, BATCH_BYTES):
                self._row += len(part)
                yield _checked(self._images.columns.take(part))
            if self._row >= end:
                return

    def _give_up(self, end: int, reason: str) -> Iterator[pa.RecordBatch]:
        while self._row < end:
            count = min(self._batch_rows, end - self._row)
            nulls = [pa.nulls(count, kind) for kind in (self._images.columns.encoded_type, pa.int16(), pa.string())]
            self._row += count
            yield pa.record_batch([*nulls, pa.repeat(reason, count)], names=["image", "label", "path", "reason"])

    def _rows_at_once(self, group: int) -> int:
        """Return the number of rows of a row group to decode at once."""
        if self._images.columns.has_fixed_size:
            return self._batch_rows
        metadata = self._images.metadata.row_group(group)
        mean_bytes = _group_bytes(metadata) // max(1, metadata.num_rows)
        return int(max(1, min(self._batch_rows, _CHUNK_ROWS, BATCH_BYTES // max(1, mean_bytes))))


def _reason(error: Exception, group: int) -> str:
    """Return the reason for quarantine of rows that can't be read."""
    if isinstance(error, PageTooLarge):
        return str(error)
    if isinstance(error, pa.ArrowException | OSError | EOFError):
        return f"damaged: row group {group} can't be read: {one_line(error)}"
    return describe_unexpected(error)


def _checked(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Add the column `reason`, and replace the images that are too large by null."""
    images = rows.column("image")
    reasons = pa.nulls(len(rows), pa.string())
    if pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type):
        sizes = pc.binary_length(images)
        if (pc.max(sizes).as_py() or 0) > MAX_IMAGE_BYTES:
            texts = [too_large(size) if size and size > MAX_IMAGE_BYTES else None for size in sizes.to_pylist()]
            reasons = pa.array(texts, pa.string())
            # A copy without the large ones, which a mask would keep in memory.
            kept = [
                images.slice(row, 1) if text is None else pa.nulls(1, images.type) for row, text in enumerate(texts)
            ]
            images = pa.concat_arrays(kept)
    return pa.record_batch(
        [images, rows.column("label"), rows.column("path"), reasons], names=["image", "label", "path", "reason"]
    )


def _texts_by_row(column: pa.StringArray) -> dict[int, str]:
    if column.null_count == len(column):
        return {}
    return {row: text for row, text in enumerate(column.to_pylist()) if text is not None}


def _runs(metadata: pq.FileMetaData, first: int, rows: int) -> Iterator[list[int]]:
    """Yield runs of row groups to read by one call, from group `first` until they have `rows` rows."""
    groups: list[int] = []
    size = 0
    for number in range(first, metadata.num_row_groups):
        group = metadata.row_group(number)
        group_bytes = _group_bytes(group)
        if groups and size + group_bytes > _PREBUFFERED_BYTES:
            yield groups
            groups, size = [], 0
        groups.append(number)
        size += group_bytes
        rows -= group.num_rows
        if rows <= 0:
            break
    if groups:
        yield groups


def _batches(chunks: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Combine chunks into batches of at most `batch_rows` rows and `BATCH_BYTES` bytes, but at least one row."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for chunk in chunks:
        for part in _small_parts(chunk):
            if held and (rows + len(part) > batch_rows or size + part.nbytes > BATCH_BYTES):
                batch = _combined(held)
                held, rows, size = [], 0, 0  # free the chunks first: the batch is a copy
                yield batch
            held.append(part)
            rows += len(part)
            size += part.nbytes
    if held:
        yield _combined(held)


def _gathered(chunks: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Combine small chunks, because each one costs as much as many rows. If reading fails, yield what was read first.

    The caller gives up the rows that it hasn't got, so without these they would be lost.
    """
    held: list[pa.RecordBatch] = []
    rows = size = 0
    try:
        for chunk in chunks:
            held.append(chunk)
            rows += len(chunk)
            size += chunk.nbytes
            if rows + len(chunk) > batch_rows or size > _GATHERED_BYTES or _has_dictionary(chunk.schema):
                whole = _combined(held)
                held, rows, size = [], 0, 0
                yield whole
    except Exception:
        if held:
            yield _combined(held)
        raise
    if held:
        yield _combined(held)


def _has_dictionary(schema: pa.Schema) -> bool:
    """Return whether chunks may have dictionaries of their own, so that they can't be combined."""
    return any(pa.types.is_dictionary(kind) for kind in schema.types)


def _combined(chunks: list[pa.RecordBatch]) -> pa.RecordBatch:
    return chunks[0] if len(chunks) == 1 else pa.concat_batches(chunks)


def _small_parts(chunk: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if chunk.nbytes <= BATCH_BYTES or len(chunk) == 1:
        yield chunk
    else:
        half = len(chunk) // 2
        yield from _small_parts(chunk.slice(0, half))
        yield from _small_parts(chunk.slice(half))
