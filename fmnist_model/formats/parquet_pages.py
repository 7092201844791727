"""Check the sizes of a Parquet file's pages before they are decompressed.

pyarrow allocates what a page's header asks for, and repeats a dictionary's value for every row that refers to it. So a
file of 1 kB can take gigabytes. `PageGuard` sees every byte before pyarrow does. It parses the headers of the pages and
stops the read before one that needs too much memory.

Source: https://parquet.apache.org/docs/file-format (parquet.thrift), and Thrift's compact protocol.
"""

import io
from bisect import bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from fmnist_model.errors import InvalidDataset

LARGEST_PAGE_BYTES = 2**30
"""Maximum memory for a page and its dictionary, compressed and decompressed together."""

MANY_BYTES = 128 * 2**20
"""Size of a page, or of the rows to decode at once, above which fewer rows are decoded at once."""

_FEW_BYTES = 64 * 2**20
"""Size to aim for when fewer rows are decoded at once."""

_MAX_FOOTER_BYTES = 128 * 2**20
_HEADER_BYTES = (64, 1024, 64 * 1024, 2**20, 16 * 2**20)
"""Bytes to try to parse a page's header from. pyarrow's limit is 16 MiB, too."""

_BYTES_PER_LISTED_VALUE = 8
"""Memory for a value of a list: the value, and its two levels while the page is decoded."""

_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_UNCOMPRESSED = 0
_DELTA_BYTE_ARRAY = 7
"""Encoding in which a value can repeat the start of the one before."""


class PageTooLarge(Exception):
    """A page needs more memory than a worker may use."""


class FewerRows(Exception):
    """Fewer rows must be decoded at once."""

    def __init__(self, rows: int) -> None:
        super().__init__(f"decode {rows} rows at once")
        self.rows = rows


@dataclass(frozen=True)
class ColumnChunk:
    """The pages of a column in a row group."""

    path: tuple[str, ...]
    """Name of the column and of the fields in it."""
    start: int
    """Offset of the first page."""
    size: int
    """Bytes of all pages, compressed."""
    is_compressed: bool


def read_column_chunks(file: Any, origin: str) -> list[list[ColumnChunk]]:
    """Return the column chunks of each row group.

    pyarrow's own `RowGroupMetaData.column` ends the process if some parts of the footer are damaged (pyarrow 26).

    Args:
        file: random-access `pyarrow.NativeFile`.
        origin: URI of the file, for error messages.

    Raises:
        InvalidDataset: the footer is damaged or too large.
    """
    tail = file.read_at(8, max(0, file.size() - 8))
    size = int.from_bytes(tail[:4], "little")
    if size > min(_MAX_FOOTER_BYTES, file.size() - 8):
        raise InvalidDataset(f"{origin} has a footer of {size:,} bytes. Restore or remove the file.")
    try:
        footer = ThriftReader(file.read_at(size, file.size() - 8 - size)).struct()
        return [[_column_chunk(column[3]) for column in group[1]] for group in footer.get(4, [])]
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InvalidDataset(
            f"{origin} can't be read as Parquet: its footer is damaged. Restore or remove the file."
        ) from None


def _column_chunk(fields: dict[int, Any]) -> ColumnChunk:
    start, dictionary = fields[9], fields.get(11, 0)
    path = tuple(name.decode("utf-8", "replace") for name in fields[3])
    return ColumnChunk(path, dictionary if 0 < dictionary < start else start, fields[7], fields[4] != _UNCOMPRESSED)


class PageGuard:
    """Check the pages of some column chunks as they are read.

    Args:
        file: random-access `pyarrow.NativeFile`.
        chunks: the column chunks that will be read.
        rows: number of rows that are decoded at once.
        dictionaries: names of the columns that are returned as dictionaries, so that values aren't repeated.
        widths: bytes of each value, by column, for columns whose values have the same size.
    """

    def __init__(
        self,
        file: Any,
        chunks: Sequence[ColumnChunk],
        rows: int,
        dictionaries: Container[str] = (),
        widths: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._file = file
        self._size: int = file.size()
        walks = (
            _PageWalk(chunk, rows, chunk.path[0] in dictionaries, widths.get(".".join(chunk.path))) for chunk in chunks
        )
        self._walks = sorted(walks, key=lambda walk: walk.next)
        self._starts = [walk.next for walk in self._walks]
        self.failure: Exception | None = None
        """The error of the file below, if a read failed. pyarrow may turn it into one of its own."""
        self.refusal: Exception | None = None
        """Why a page was refused."""

    def open(self) -> pa.PythonFile:
        """Return the file for pyarrow to read."""
        return pa.PythonFile(_GuardedReader(self), mode="r")

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._size

    def read_at(self, size: int, position: int) -> bytes:
        """Read bytes, and check the headers of the pages in them.

        Raises:
            PageTooLarge, FewerRows: see there.
        """
        data = self._read(min(size, max(0, self._size - position)), position)
        try:
            for walk in self._walks[: bisect_right(self._starts, position + len(data))]:
                self._advance(walk, position, data)
        except (PageTooLarge, FewerRows) as refusal:
            self.refusal = refusal
            raise
        return data

    def _advance(self, walk: "_PageWalk", position: int, data: bytes) -> None:
        """Check the headers of the pages that start before the end of the data."""
        while walk.next < min(position + len(data), walk.end):
            header: dict[int, Any] | None = None
            inside = walk.next - position
            if inside >= 0:
                header, length = _page_header(data[inside : inside + _HEADER_BYTES[1]])
            for size in _HEADER_BYTES:
                if header is None:
                    header, length = _page_header(self._read(min(size, walk.end - walk.next), walk.next))
            if header is None:
                walk.next = walk.end  # the pages are damaged, and pyarrow says how
                return
            walk.pass_page(header, length)

    def _read(self, size: int, position: int) -> bytes:
        try:
            return bytes(self._file.read_at(size, position)) if size > 0 else b""
        except Exception as error:
            self.failure = error
            raise


class _PageWalk:
    """The way through the pages of a column chunk."""

    def __init__(self, chunk: ColumnChunk, rows: int, keeps_dictionary: bool, width: int | None) -> None:
        self.next = chunk.start
        """Offset of the first page that wasn't checked."""
        self.end = chunk.start + chunk.size
        self._chunk = chunk
        self._rows = rows
        self._keeps_dictionary = keeps_dictionary
        self._width = width
        self._is_list = len(chunk.path) > 1 and chunk.path[-1] in ("element", "item", "array")
        self._dictionary_bytes = 0

    def pass_page(self, header: dict[int, Any], length: int) -> None:
        """Check a page's size, and go on to the next page."""
        kind, size, compressed = (header.get(field, 0) for field in (1, 2, 3))
        if not isinstance(size, int) or not isinstance(compressed, int) or min(size, compressed) < 0:
            self.next = self.end
            return
        # pyarrow copies a large page when it reads it, and again when it decompresses it.
        memory = max(2 * compressed, compressed + size if self._chunk.is_compressed else 0)
        if kind == _DICTIONARY_PAGE:
            self._dictionary_bytes = size * (7 if self._keeps_dictionary else 2)  # measured
            self._check(memory, size, self._width or size, is_repeated=not self._keeps_dictionary)
        elif kind in (_DATA_PAGE, _DATA_PAGE_V2):
            details = header.get(5 if kind == _DATA_PAGE else 8) or {}
            values = max(1, details.get(1, 1))
            repeats = details.get(2 if kind == _DATA_PAGE else 4) == _DELTA_BYTE_ARRAY
            if self._is_list:
                size = max(size, values * _BYTES_PER_LISTED_VALUE)
                memory += size
            self._check(memory, size, size if repeats else size // values, is_repeated=True)
        self.next += length + compressed

    def _check(self, memory: int, size: int, value_bytes: int, *, is_repeated: bool) -> None:
        """Check a page.

        Args:
            memory: bytes that it takes to read it.
            size: bytes of the page, decompressed.
            value_bytes: bytes of a value in it, at most or on average.
            is_repeated: whether each row that is decoded at once may need as many bytes.
        """
        if memory + self._dictionary_bytes > LARGEST_PAGE_BYTES:
            column = ".".join(self._chunk.path)
            raise PageTooLarge(
                f"too large: reading a page of the column {column} takes {memory + self._dictionary_bytes:,} bytes of "
                "memory. Write the file with smaller row groups"
            )
        if size > MANY_BYTES and self._rows > 1 and is_repeated:
            raise FewerRows(1)
        if is_repeated and self._rows > 1 and self._rows * value_bytes > MANY_BYTES:
            raise FewerRows(max(1, _FEW_BYTES // value_bytes))


class _GuardedReader(io.RawIOBase):
    """File object for `pyarrow.PythonFile`, which serializes its calls."""

    def __init__(self, guard: PageGuard) -> None:
        self._guard = guard
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._guard.size}[whence]
        self._position = start + offset
        return self._position

    def size(self) -> int:
        return self._guard.size

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._guard.size if size is None or size < 0 else size
        data = self._guard.read_at(wanted, self._position)
        self._position += len(data)
        return data


def _page_header(data: bytes) -> tuple[dict[int, Any] | None, int]:
    """Return the fields of a page's header and its length, or None if the data ends inside it or isn't a header."""
    reader = ThriftReader(data)
    try:
        return reader.struct(), reader.position
    except (IndexError, ValueError, RecursionError):
        return None, 0


class ThriftReader:
    """Reader of structs in Thrift's compact protocol.

    Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct, and return its values by field number.

        Raises:
            IndexError: the data ends inside the struct.
            ValueError: the data isn't a struct.
        """
        if depth > 32:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (7, 8):
            return self._bytes(8 if kind == 7 else self._varint())
        nested_types: dict[int, Callable[[int], Any]] = {9: self._list, 10: self._list, 11: self._map, 12: self.struct}
        nested = nested_types.get(kind)
        if nested is None:
            raise ValueError(f"no type has the number {kind}")
        return nested(depth + 1)

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        length = head >> 4 if head >> 4 < 15 else self._varint()
        return [self._value(head & 15, depth + 1) for _ in range(self._checked(length))]

    def _map(self, depth: int) -> list[tuple[Any, Any]]:
        length = self._checked(self._varint())
        if not length:
            return []
        kinds = self._byte()
        return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(length)]

    def _checked(self, length: int) -> int:
        if length > len(self._data) - self.position:  # every element takes at least a byte
            raise IndexError("the data ends inside a list")
        return length

    def _bytes(self, size: int) -> bytes:
        start = self.position
        self.position += self._checked(size)
        return self._data[start : self.position]

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in count(0, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number is too long")
        raise AssertionError

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
