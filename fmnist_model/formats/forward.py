"""Read a plain or compressed file from start to end in large blocks."""

import bz2
import gzip
import io
import re
from collections.abc import Callable
from typing import Any, Protocol, cast

from fmnist_model.errors import InvalidDataset, one_line

BLOCK_BYTES = 4 * 2**20
"""Bytes per read. The latency of a request to an object store equals the transfer time of a few MiB."""

_DECOMPRESSED_BYTES = 2**18
"""Bytes to decompress at once. At most as many are lost where a file of Zstandard is truncated."""


class ForwardBytes(Protocol):
    """A sequence of bytes that can only be read forward."""

    def at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at an offset, or fewer at the end of the sequence.

        Offsets must not decrease from call to call.
        """


def open_forward(
    file: Any, origin: str, *, block_bytes: int = BLOCK_BYTES, start: int = 0, end: int | None = None
) -> ForwardBytes:
    """Open a file for forward reading, and decompress it if it starts as a file of gzip, bzip2 or Zstandard.

    Args:
        file: random-access `pyarrow.NativeFile`. Its position is neither used nor moved.
        origin: URI of the file, for error messages.
        block_bytes: number of bytes per read.
        start: offset of the first byte to read. It must be 0 if the file is compressed.
        end: expected end of reading in a plain file. Blocks don't extend beyond it.
    """
    kind = compression_of(file) if start == 0 else None
    return PlainBytes(file, block_bytes, end) if kind is None else DecompressedBytes(file, origin, kind, block_bytes)


def is_gzipped(file: Any) -> bool:
    """Return whether a file starts with the magic number of gzip."""
    return compression_of(file) == "gzip"


def compression_of(file: Any) -> str | None:
    """Return `gzip`, `bzip2` or `Zstandard` by a file's first bytes, or None if it isn't compressed."""
    start = file.read_at(10, 0)
    return next((kind for kind, magic in _MAGIC_NUMBERS.items() if re.match(magic, start)), None)


def skip_zeros(data: ForwardBytes, offset: int) -> int:
    """Return the offset of the first nonzero byte, or of the end."""
    while block := data.at(offset, 2**20):
        rest = block.lstrip(b"\0")
        if rest:
            return offset + len(block) - len(rest)
        offset += len(block)
    return offset


class PlainBytes:
    """Forward reader of a plain file. Skipped parts beyond the current block are never read."""

    def __init__(self, file: Any, block_bytes: int = BLOCK_BYTES, end: int | None = None) -> None:
        self._file = file
        self._block_bytes = block_bytes
        self._size: int = file.size()
        self._expected_end = self._size if end is None else end
        self._block = b""
        self._start = 0

    def at(self, offset: int, size: int) -> bytes:
        """Return bytes at an offset, as `ForwardBytes.at` describes."""
        first = offset - self._start
        if first + size > len(self._block):
            self._fetch(offset, size)
            first = 0
        return self._block[first : first + size]

    def _fetch(self, offset: int, size: int) -> None:
        kept = self._block[offset - self._start :]
        position = offset + len(kept)
        wanted = max(size - len(kept), min(self._block_bytes, self._expected_end - position))
        # A damaged header may ask for terabytes, and pyarrow allocates memory before it reads.
        wanted = min(wanted, self._size - position)
        self._block = kept + self._file.read_at(wanted, position) if wanted > 0 else kept
        self._start = offset


class DecompressedBytes:
    """Forward reader of a compressed file with any number of streams. It stops early where a file is truncated."""

    def __init__(self, file: Any, origin: str, kind: str, block_bytes: int = BLOCK_BYTES) -> None:
        self._origin = origin
        self._kind = kind
        self._source = _Sequential(file)
        self._decompress_some = _DECOMPRESSORS[kind](io.BufferedReader(self._source, block_bytes))
        self._held = bytearray()
        self._start = 0
        self._ended = False

    def at(self, offset: int, size: int) -> bytes:
        """Return decompressed bytes at an offset, as `ForwardBytes.at` describes.

        Raises:
            InvalidDataset: the file is damaged.
        """
        while not self._ended and self._start + len(self._held) < offset + size:
            self._drop_before(offset)
            self._held += self._decompress()
        self._drop_before(offset)
        return bytes(self._held[:size])

    def _drop_before(self, offset: int) -> None:
        dropped = min(offset - self._start, len(self._held))
        del self._held[:dropped]
        self._start += dropped

    def _decompress(self) -> bytes:
        try:
            data = self._decompress_some(_DECOMPRESSED_BYTES)
        except EOFError:
            data = b""
        except Exception as error:  # noqa: BLE001 (each decompressor raises exceptions of its own)
            if self._source.failure is not None:
                raise self._source.failure from None
            if "truncated" in str(error).lower():  # pyarrow has no class of its own for this
                data = b""
            else:
                raise InvalidDataset(
                    f"{self._origin} is a damaged {self._kind} file: {one_line(error)}. Restore or recreate it."
                ) from None
        self._ended = not data
        return data


def _zstandard(source: io.BufferedReader) -> "Callable[[int], bytes]":
    import pyarrow as pa

    return cast("Callable[[int], bytes]", pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd").read)


_MAGIC_NUMBERS = {"gzip": rb"\x1f\x8b", "bzip2": rb"BZh[1-9]1AY&SY", "Zstandard": rb"\x28\xb5\x2f\xfd"}
_DECOMPRESSORS: "dict[str, Callable[[io.BufferedReader], Callable[[int], bytes]]]" = {
    # Unlike read, read1 returns all bytes before the point where the file is truncated.
    "gzip": lambda source: gzip.GzipFile(fileobj=source).read1,
    "bzip2": lambda source: bz2.BZ2File(source).read1,
    "Zstandard": _zstandard,
}
"""Functions that return a number of decompressed bytes of a file, by kind of compression."""


class _Sequential(io.RawIOBase):
    """Adapt a `pyarrow.NativeFile` to `io.BufferedReader`. Closing the adapter leaves the file open."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._position = 0
        self.failure: Exception | None = None
        """The error of the file, if a read failed."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read_at(len(buffer), self._position)
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
