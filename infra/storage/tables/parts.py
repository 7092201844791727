"""Parts: the Parquet files of one attempt at a shard. Each attempt writes under names of its own."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from infra.storage.object_store import ObjectStore

ROW_GROUP = 65_536
"""Rows in a row group of a part, about 5 MB: large enough to be worth skipping, small enough to hold in memory."""
_PARQUET: dict[str, Any] = {
    "compression": "zstd",
    # For other columns, Parquet would start a dictionary and abandon it.
    "use_dictionary": [
        "predicted_label",
        "predicted_class",
        "label",
        "file_version",
        "model_version",
        "transform",
        "reason_kind",
        "reason",
        "retryable",
    ],
}
_LONGEST_BOUND = 512
"""Characters of the longest text that becomes a bound in the statistics."""


class PartFile(BaseModel, frozen=True):
    """A finished part, as the shard's record and the Delta log describe it."""

    name: str
    """Key relative to the folder of its Delta table."""
    size: int
    """Bytes."""
    sha256: str
    """Empty for parts of before there were digests."""
    etag: str
    """The store's ETag after the write. An equal ETag means equal bytes."""
    rows: int
    statistics: str
    """Bounds and null counts of the columns in Delta's JSON, for data skipping."""


class PartWriter:
    """A Parquet object in the making: zstd, with statistics, in row groups of a fixed size."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self.rows = 0
        """Number of rows written."""
        self._file: PartFile | None = None

    @property
    def finished(self) -> PartFile:
        """The finished part, after the block of `open_part`."""
        if self._file is None:
            raise RuntimeError("The part is still open.")
        return self._file

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        self.rows += len(batch)
        while self._held_rows + len(batch) >= ROW_GROUP:
            room = ROW_GROUP - self._held_rows
            self._held.append(batch.slice(0, room))
            self.flush()
            batch = batch.slice(room)
        if len(batch):
            self._held.append(batch)
            self._held_rows += len(batch)

    def flush(self) -> None:
        """End a row group."""
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held), row_group_size=ROW_GROUP)
        self._held, self._held_rows = [], 0


@contextmanager
def open_part(store: ObjectStore, folder: str, name: str, schema: pa.Schema) -> Iterator[PartWriter]:
    """Write a part as a stream. It exists when the block ends, unless the block raises.

    Args:
        store: store of the table.
        folder: folder of the Delta table.
        name: key of the part relative to `folder`. No other attempt may use it.
        schema: Arrow schema of the rows.
    """
    collected: list[pq.FileMetaData] = []
    with store.publish(f"{folder}/{name}") as stream:
        digested = _Digested(stream)
        with pq.ParquetWriter(
            pa.PythonFile(digested, mode="w"), schema, metadata_collector=collected, **_PARQUET
        ) as writer:
            part = PartWriter(writer)
            yield part
            part.flush()
    part._file = PartFile(
        name=name,
        size=digested.size,
        sha256=digested.sha256.hexdigest(),
        etag=stream.etag,
        rows=part.rows,
        statistics=statistics_of(collected[0]),
    )


def is_intact(store: ObjectStore, folder: str, part: PartFile, found_size: int, found_etag: str) -> bool:
    """Whether a part still has the bytes that its writer sent. Reads the part only if its ETag has changed."""
    if found_size != part.size:
        return False
    if found_etag == part.etag or not part.sha256:
        return True
    filesystem, path = store.arrow(f"{folder}/{part.name}")
    sha256 = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path) as stream:
            while block := stream.read(2**20):
                sha256.update(block)
    except FileNotFoundError:  # removed after it was listed
        return False
    return sha256.hexdigest() == part.sha256


def statistics_of(metadata: pq.FileMetaData) -> str:
    """Return the number of rows, the bounds and the null counts of a Parquet file in the JSON of Delta's log."""
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    groups = range(metadata.num_row_groups)
    for number in range(metadata.num_columns if metadata.num_row_groups else 0):
        name = metadata.row_group(0).column(number).path_in_schema
        found = [metadata.row_group(group).column(number).statistics for group in groups]
        if "." in name or not all(found):
            continue
        if all(entry.has_null_count for entry in found):
            nulls[name] = sum(entry.null_count for entry in found)
        bounds = [bound for entry in found if entry.has_min_max for bound in (entry.min, entry.max)]
        if bounds and all(entry.has_min_max or entry.num_values == 0 for entry in found) and _can_bound(bounds):
            least[name], greatest[name] = min(bounds), max(bounds)
    statistics = {"numRecords": metadata.num_rows, "minValues": least, "maxValues": greatest, "nullCount": nulls}
    return json.dumps(statistics, ensure_ascii=False)


def _can_bound(values: list[Any]) -> bool:
    if isinstance(values[0], str):
        return max(map(len, values)) <= _LONGEST_BOUND
    # JSON has no infinity. A bound of booleans skips nothing.
    return isinstance(values[0], int | float) and not isinstance(values[0], bool) and all(map(math.isfinite, values))


class _Digested:
    """A stream that counts and digests what passes through, with the interface that `pa.PythonFile` needs."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size += len(data)
        self._stream.write(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None: ...
