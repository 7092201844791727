"""Bytes of a file, read forward in large blocks: plain, or gzipped and decompressed as they are read."""

import gzip
import io
import zlib
from typing import Any, Protocol

from fmnist_model.errors import InvalidDataset

BLOCK_BYTES = 4 * 2**20
"""Read at once: a request to an object store takes the time of a few MiB, whatever it asks for."""

_GUNZIP_BYTES = 2**20


class ForwardBytes(Protocol):
    """A sequence of bytes that is read from its beginning to its end."""

    def at(self, offset: int, size: int) -> bytes:
        """The bytes at an offset, not before that of an earlier call; fewer than `size` where the sequence ends."""


def open_forward(
    file: Any, origin: str, *, block_bytes: int = BLOCK_BYTES, begin: int = 0, end: int | None = None
) -> ForwardBytes:
    """Read a file forward, decompressed if it is gzipped.

    Args:
        file: a random-access `pyarrow.NativeFile`; its position is neither used nor moved.
        origin: its URI, for messages.
        block_bytes: what is read at once.
        begin: where reading is to begin. Only a file that is read from its beginning may be gzipped.
        end: where reading is expected to end, in a plain file: no block goes beyond it.
    """
    if begin == 0 and is_gzipped(file):
        return GunzippedBytes(file, origin, block_bytes)
    return PlainBytes(file, block_bytes, end)


def is_gzipped(file: Any) -> bool:
    """Whether a file begins as gzip files do."""
    return bool(file.read_at(2, 0) == b"\x1f\x8b")


def skip_zeros(data: ForwardBytes, offset: int) -> int:
    """The offset of the first byte that is not zero, or of the end."""
    while block := data.at(offset, 2**20):
        rest = block.lstrip(b"\0")
        if rest:
            return offset + len(block) - len(rest)
        offset += len(block)
    return offset


class PlainBytes:
    """A file's bytes. Where a part is passed over, what lies beyond the block in hand is never read."""

    def __init__(self, file: Any, block_bytes: int = BLOCK_BYTES, end: int | None = None) -> None:
        self._file = file
        self._block_bytes = block_bytes
        self._size: int = file.size()
        self._expected_end = self._size if end is None else end
        self._block = b""
        self._start = 0

    def at(self, offset: int, size: int) -> bytes:
        """The bytes at an offset; see `ForwardBytes`."""
        begin = offset - self._start
        if begin + size > len(self._block):
            self._fetch(offset, size)
            begin = 0
        return self._block[begin : begin + size]

    def _fetch(self, offset: int, size: int) -> None:
        kept = self._block[offset - self._start :]
        position = offset + len(kept)
        wanted = max(size - len(kept), min(self._block_bytes, self._expected_end - position))
        # Not beyond the file: a damaged header may ask for terabytes, and room is made before they are read.
        wanted = min(wanted, self._size - position)
        self._block = kept + self._file.read_at(wanted, position) if wanted > 0 else kept
        self._start = offset


class GunzippedBytes:
    """What a gzip file holds, of one or several members. A truncated file gives what can be decompressed of it."""

    def __init__(self, file: Any, origin: str, block_bytes: int = BLOCK_BYTES) -> None:
        self._origin = origin
        self._stream = gzip.GzipFile(fileobj=io.BufferedReader(_Sequential(file), block_bytes))
        self._held = bytearray()
        self._start = 0
        self._ended = False

    def at(self, offset: int, size: int) -> bytes:
        """The bytes at an offset; see `ForwardBytes`.

        Raises:
            InvalidDataset: the file is damaged.
        """
        while not self._ended and self._start + len(self._held) < offset + size:
            self._drop_before(offset)
            # Unlike read, read1 loses nothing when the file turns out to be truncated.
            self._held += self._decompress()
        self._drop_before(offset)
        return bytes(self._held[:size])

    def _drop_before(self, offset: int) -> None:
        passed = min(offset - self._start, len(self._held))
        del self._held[:passed]
        self._start += passed

    def _decompress(self) -> bytes:
        try:
            data = self._stream.read1(_GUNZIP_BYTES)
        except EOFError:
            data = b""
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InvalidDataset(
                f"{self._origin} is a damaged gzip file: {error}. Restore it, or pack its images anew."
            ) from None
        self._ended = not data
        return data


class _Sequential(io.RawIOBase):
    """A file from its beginning, for `io.BufferedReader`: closing it leaves the file open."""

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
