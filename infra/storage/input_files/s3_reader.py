"""Read a part of an S3 object after another, as pyarrow reads a file.

pyarrow's own S3 file system refuses keys such as `a//b`, knows neither requester pays nor access points, and can't
tell an archived object from a wrong key. smart_open and s3fs have no place to notice that the object changed between
two requests. So this reader makes range requests with boto3, and lets a `pyarrow.PythonFile` read from them.
"""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from botocore.exceptions import HTTPClientError, IncompleteReadError

from infra.errors import RequestError
from infra.storage.input_files.interface import CHANGED, InputUnreadable
from infra.storage.object_store.s3_configuration import MAX_ATTEMPTS, S3Connection

REQUEST_BYTES = 16 * 2**20
"""Bytes per request, and bytes to read ahead of a reader that goes from start to end."""
_SMALLEST_REQUEST_BYTES = 256 * 2**10
"""Bytes to read at least. Readers look at a few bytes first, and S3 takes as long to return one as 256 KiB."""
_REQUESTS_IN_FLIGHT = 4
_BLOCKS_HELD = 3
"""Parts of an object that are kept until they are read: the current one, the next one, and a footer."""
_PART_BYTES = 2**20
"""Bytes of an answer that are lost if the connection breaks."""


@dataclass(frozen=True)
class S3Object:
    """An object of known size and version."""

    bucket: str
    key: str
    size: int
    """Bytes."""
    etag: str
    """ETag without quotes."""


class S3File(pa.PythonFile):  # type: ignore[misc]  # pyarrow has no types
    """An S3 object as a random-access `pyarrow.NativeFile`."""

    def __init__(self, reader: "RangeReader") -> None:  # PythonFile takes the reader before this
        self._reader = reader

    @property
    def failure(self) -> Exception | None:
        """The last error of a read. pyarrow may have turned it into one of its own on the way."""
        return self._reader.failure


@dataclass
class _Block:
    """A part of the object that was read or is being read."""

    start: int
    end: int
    data: "Future[memoryview]"


class RangeReader(io.RawIOBase):
    """A file object over range requests. Its reads raise `InputUnreadable` if the object is gone, changed or refused.

    Large reads are split into requests that are made at the same time. Sequential reads are made ahead of time.
    Several threads may read, one at a time.
    """

    def __init__(
        self, connection: S3Connection, found: S3Object, errors: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Open an object.

        Args:
            connection: connection to the inputs.
            found: the object. A read fails once S3 returns another version of it.
            errors: makes a context manager that turns botocore's errors into those of inputs.
        """
        self._connection = connection
        self._object = found
        self._errors = errors
        self._position = 0
        self._lock = threading.RLock()
        self._blocks: list[_Block] = []
        self._last_end = -1
        self._threads = ThreadPoolExecutor(_REQUESTS_IN_FLIGHT, "s3-input")  # starts a thread with the first call
        self._stopped = False
        self.failure: Exception | None = None
        """The last error of a read."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def size(self) -> int:
        """Return the size in bytes."""
        return self._object.size

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._object.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> Any:
        """Return `size` bytes, or fewer at the end of the object."""
        with self._lock:
            end = self._object.size if size is None or size < 0 else min(self._position + size, self._object.size)
            data = self._read_range(self._position, end) if end > self._position else b""
            self._position += len(data)
            return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or less of it at the end of the object, and return the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Stop reading ahead."""
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._blocks = []
        super().close()

    def _read_range(self, start: int, end: int) -> "bytes | memoryview":
        try:
            parts = list(self._parts(start, end))
        except Exception as error:
            self.failure = error
            raise
        if start == self._last_end and end < self._object.size:
            self._read_ahead(end)
        self._last_end = end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _parts(self, start: int, end: int) -> Iterator[memoryview]:
        while start < end:
            block = self._block_at(start) or self._fetch_block(start, max(end, start + _SMALLEST_REQUEST_BYTES))
            data = block.data.result()[start - block.start : end - block.start]
            start += len(data)
            if start == block.end:
                self._blocks.remove(block)
            yield data

    def _block_at(self, position: int) -> _Block | None:
        return next((block for block in self._blocks if block.start <= position < block.end), None)

    def _fetch_block(self, start: int, end: int) -> _Block:
        """Read a block now."""
        end = self._free_end(start, end)
        data: Future[memoryview] = Future()
        data.set_result(self._fetch(start, end))
        return self._hold(_Block(start, end, data))

    def _read_ahead(self, position: int) -> None:
        """Start reading what comes after a position, unless it has been read or is being read."""
        start = position
        while block := self._block_at(start):
            start = block.end
        end = self._free_end(start, start + REQUEST_BYTES)
        if start - position < REQUEST_BYTES and start < end:
            self._hold(_Block(start, end, self._threads.submit(self._fetch_one, start, end)))

    def _free_end(self, start: int, end: int) -> int:
        """Return where a block must end that starts at a position: before the next block, and with the object."""
        return min([end, self._object.size, *(block.start for block in self._blocks if block.start > start)])

    def _hold(self, block: _Block) -> _Block:
        self._blocks = [*self._blocks[1 - _BLOCKS_HELD :], block]
        return block

    def _fetch(self, start: int, end: int) -> memoryview:
        if end - start <= REQUEST_BYTES:
            return self._fetch_one(start, end)
        buffer = memoryview(bytearray(end - start))
        cuts = range(0, len(buffer), REQUEST_BYTES)
        list(self._threads.map(lambda cut: self._fill(buffer[cut : cut + REQUEST_BYTES], start + cut), cuts))
        return buffer

    def _fetch_one(self, start: int, end: int) -> memoryview:
        buffer = memoryview(bytearray(end - start))
        self._fill(buffer, start)
        return buffer

    def _fill(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer from a position, with a new request whenever the connection breaks."""
        filled = attempts = 0
        with self._errors():
            while filled < len(buffer):
                received = self._receive(buffer[filled:], start + filled)
                filled += received
                attempts = 0 if received else attempts + 1
                if attempts == MAX_ATTEMPTS or self._stopped:
                    raise IncompleteReadError(actual_bytes=filled, expected_bytes=len(buffer))

    def _receive(self, buffer: memoryview, start: int) -> int:
        """Request a range, and return the number of bytes that arrive before the connection breaks."""
        found = self._object
        answer = self._connection.client.get_object(
            Bucket=found.bucket,
            Key=found.key,
            Range=f"bytes={start}-{start + len(buffer) - 1}",
            **self._connection.reading_options,
        )
        received = 0
        with closing(answer["Body"]) as body:
            # Compared here, because not every server takes If-Match with the ETag as it returned it.
            if answer["ETag"].strip('"') != found.etag:
                raise InputUnreadable(CHANGED)
            if start > 0 and not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                raise RequestError(
                    f"{self._connection.endpoint} ignores the Range of a request. Use another S3 server."
                )
            # botocore retries only up to the first byte of the body.
            with suppress(HTTPClientError, IncompleteReadError):
                while received < len(buffer) and (data := body.read(min(_PART_BYTES, len(buffer) - received))):
                    buffer[received : received + len(data)] = data
                    received += len(data)
        return received
