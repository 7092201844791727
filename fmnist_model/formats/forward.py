"""Read a plain or gzipped file from start to end in large blocks."""

import gzip
import io
import zlib
from typing import Any, Protocol

from fmnist_model.errors import InvalidDataset

BLOCK_BYTES = 4 * 2**20
"""Bytes per read. The latency of a request to an object store equals the transfer time of a few MiB."""

_GUNZIP_BYTES = 2**20


class ForwardBytes(Protocol):
    """A sequence of bytes that can only be read forward."""

    def at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at an offset, or fewer at the end of the sequence.

        Offsets must not decrease from call to call.
        """


def open_forward(
    file: Any, origin: str, *, block_bytes: int = BLOCK_BYTES, start: int = 0, end: int | None = None
) -> ForwardBytes:
    """Open a file for forward reading, and decompress it if it is gzipped.

    Args:
        file: random-access `pyarrow.NativeFile`. Its position is neither used nor moved.
        origin: URI of the file, for error messages.
        block_bytes: number of bytes per read.
        start: offset of the first byte to read. It must be 0 if the file is gzipped.
        end: expected end of reading in a plain file. Blocks don't extend beyond it.
    """
    if start == 0 and is_gzipped(file):
        return GunzippedBytes(file, origin, block_bytes)
    return PlainBytes(file, block_bytes, end)


def is_gzipped(file: Any) -> bool:
    """Return whether a file starts with the magic number of gzip."""
    return bool(file.read_at(2, 0) == b"\x1f\x8b")


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


class GunzippedBytes:
    """Forward reader of a gzip file with any number of members. It stops early where a file is truncated."""

    def __init__(self, file: Any, origin: str, block_bytes: int = BLOCK_BYTES) -> None:
        self._origin = origin
        self._stream = gzip.GzipFile(fileobj=io.BufferedReader(_Sequential(file), block_bytes))
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
            # Unlike read, read1 returns all bytes before the point where the file is truncated.
            self._held += self._decompress()
        self._drop_before(offset)
        return bytes(self._held[:size])

    def _drop_before(self, offset: int) -> None:
        dropped = min(offset - self._start, len(self._held))
        del self._held[:dropped]
        self._start += dropped

    def _decompress(self) -> bytes:
        try:
            data = self._stream.read1(_GUNZIP_BYTES)
        except EOFError:
            data = b""
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InvalidDataset(f"{self._origin} is a damaged gzip file: {error}. Restore or recreate it.") from None
        self._ended = not data
        return data


class _Sequential(io.RawIOBase):
    """Adapt a `pyarrow.NativeFile` to `io.BufferedReader`. Closing the adapter leaves the file open."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read_at(len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
