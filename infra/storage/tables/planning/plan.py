"""The plan of a batch: its inputs, cut into shards of even work, in the order of their URIs.

    work/<table>/<batch>/plan.parquet

Plans are written and read as streams, so they can have any number of inputs.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import BaseModel

from infra.errors import JobStopped
from infra.storage.keys import plan_key
from infra.storage.object_store import ObjectStore


class BatchPlan(BaseModel):
    """A planned batch: its plan is in the store, its commit may not be yet."""

    table: str
    batch: str
    """Its number and the first digits of the digest, as in `00000012-0f3a9c5e7b1d2468`."""
    number: int
    """Number of the batch in its table, from 1."""
    model_version: str
    options: dict[str, Any]
    shards: int
    planned: int
    """Number of images."""
    superseded: int = 0
    """Number of planned files of which the table already has another version for this model."""
    is_retry: bool = False
    """Whether its files had images in quarantine that are tried again."""
    digest: str = ""
    """SHA-256 of number, inputs, model and options, in hexadecimal. Empty in plans from before Delta Lake."""


PIECE_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.int16()),
    ]
)
"""One piece of input per row: `rows` images of the file `uri`, starting with `first_row`. `fingerprint` identifies the
file's version, and `kind` its format. Reading starts at byte `offset` and takes `size` bytes. `label` is the true class
of an image file, if known."""


@dataclass(frozen=True)
class Piece:
    """A row of `PIECE_SCHEMA`: one image file, or consecutive images of a container.

    For containers and single files. Code that handles many loose files works on the columns instead.
    """

    uri: str
    """URI of the file."""
    fingerprint: str
    """Version of the file when it was planned."""
    kind: str
    """`image`, a kind of container, `unreadable`, or `unusable` (see `tasks.classification.listed_file`)."""
    first_row: int
    """Number of the first image in the file, from 0."""
    rows: int
    """Number of images."""
    offset: int
    """Byte at which reading starts."""
    size: int
    """Bytes to read."""
    label: int | None = None
    """True class of an image file, if known."""

    @classmethod
    def from_arrow(cls, rows: pa.Table | pa.RecordBatch) -> list[Self]:
        """Convert rows that have at least the columns of `PIECE_SCHEMA`."""
        return [cls(**row) for row in rows.select(PIECE_SCHEMA.names).to_pylist()]

    @staticmethod
    def to_arrow(pieces: "Iterable[Piece]") -> pa.RecordBatch:
        """Convert pieces to rows of `PIECE_SCHEMA`."""
        return pa.RecordBatch.from_pylist([vars(piece) for piece in pieces], schema=PIECE_SCHEMA)


PLAN_SCHEMA = PIECE_SCHEMA.insert(0, pa.field("shard", pa.int32(), nullable=False))
"""`PIECE_SCHEMA` with the number of the piece's shard. Shards count from 0 without gaps."""

CHUNK_ROWS = 65_536
"""Rows held in memory at a time, and rows in a row group of the plan."""

SMALLEST_SHARD, LARGEST_SHARD, SHARDS = 20_000.0, 1_250_000.0, 200
"""Bounds of a shard's work, in small images of a container, and number of shards to aim for between them. The smallest
takes a CPU about half a second. The largest makes a part of about 64 MiB."""

_COPIES_AT_ONCE = 16
"""Objects copied in parallel. Each copy takes a few round trips."""


def work_of(pieces: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Estimate the work of each piece, in small images of a container. Bytes and opened files cost extra."""
    rows, size, kind = (pieces.column(name) for name in ("rows", "size", "kind"))
    single = np.asarray(pc.equal(kind, "image")).astype(np.float64)
    cost: np.ndarray[Any, np.dtype[np.float64]] = rows.to_numpy() + size.to_numpy() / 2048 + 4 * single
    return cost


def shard_work(total: float) -> float:
    """Return the work per shard of a batch whose total work is `total`."""
    aim = min(max(total / SHARDS, SMALLEST_SHARD), LARGEST_SHARD)
    return total / max(1, round(total / aim))


def cut_into_shards(pieces: Iterable[pa.RecordBatch], work: float) -> Iterator[pa.RecordBatch]:
    """Number pieces by shards of about the same work, in their order.

    Args:
        pieces: rows of `PIECE_SCHEMA`.
        work: work per shard (`shard_work`). A larger piece becomes a shard of its own.

    Returns:
        The same rows by `PLAN_SCHEMA`.
    """
    before, last_share, shard = 0.0, -1, -1
    for batch in pieces:
        if not len(batch):
            continue
        cost = work_of(batch)
        ends = before + np.cumsum(cost)
        shares = ((ends - cost / 2) / work).astype(np.int64)
        # A piece larger than a share skips numbers, so count the changes instead.
        numbers = shard + np.cumsum(np.diff(shares, prepend=last_share) != 0)
        before, last_share, shard = float(ends[-1]), int(shares[-1]), int(numbers[-1])
        yield pa.record_batch([pa.array(numbers.astype(np.int32)), *batch.columns], schema=PLAN_SCHEMA)


def write_plan(
    store: ObjectStore,
    *,
    table: str,
    number: int,
    model_version: str,
    options: dict[str, Any],
    inputs: Iterable[pa.RecordBatch],
    superseded: int,
    scratch: Path,
    is_retry: bool = False,
) -> BatchPlan:
    """Write the plan of a batch. Its id is its number and a digest, so writing the same plan twice changes nothing.

    Args:
        store: store that gets the plan.
        table: name of the prediction table.
        number: number of the batch.
        model_version: model version that will classify.
        options: everything else that affects the predictions.
        inputs: at least one row of `PLAN_SCHEMA`, in the order of the shards.
        superseded: number of files of which the table has another version.
        scratch: folder for temporary files.
        is_retry: whether the files had images in quarantine that are tried again.
    """
    digest = _Digest([number, model_version, options])
    local = scratch / "plan.parquet"
    shards = planned = 0
    with pq.ParquetWriter(local, PLAN_SCHEMA, compression="zstd") as writer:
        for chunk in rechunked(inputs):
            digest.add(chunk)
            planned += pc.sum(chunk.column("rows")).as_py()
            shards = chunk.column("shard")[-1].as_py() + 1
            writer.write_batch(chunk)
        plan = BatchPlan(
            table=table,
            batch=f"{number:08d}-{digest.hexdigest()[:16]}",
            number=number,
            model_version=model_version,
            options=options,
            shards=shards,
            planned=planned,
            superseded=superseded,
            is_retry=is_retry,
            digest=digest.hexdigest(),
        )
        writer.add_key_value_metadata({"fmnist_plan": plan.model_dump_json()})
    with store.publish(plan_key(table, plan.batch)) as stream, local.open("rb") as written:
        while block := written.read(2**20):
            stream.write(block)
    local.unlink()
    return plan


def rechunked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Regroup rows into batches of `CHUNK_ROWS`."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        while count >= CHUNK_ROWS:
            rows = pa.Table.from_batches(held).combine_chunks()
            yield rows.slice(0, CHUNK_ROWS).to_batches()[0]
            held = rows.slice(CHUNK_ROWS).to_batches()
            count -= CHUNK_ROWS
    if count:
        yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]


class _Digest:
    """SHA-256 of rows as text, which doesn't depend on Arrow's memory layout."""

    def __init__(self, about: list[Any]) -> None:
        self._sha256 = hashlib.sha256(json.dumps(about, sort_keys=True).encode())

    def add(self, rows: pa.RecordBatch) -> None:
        pyarrow.csv.write_csv(rows, pa.PythonFile(self, mode="w"), pyarrow.csv.WriteOptions(include_header=False))

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()

    # The interface that pa.PythonFile needs:
    closed = False

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        return len(data)

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None: ...


def find_plan(store: ObjectStore, table: str, batch: str) -> BatchPlan | None:
    """Read the plan of a batch without its inputs, or return None if it was never written."""
    key = plan_key(table, batch)
    if store.stat(key) is None:
        return None
    filesystem, path = store.arrow(key)
    metadata = pq.read_metadata(path, filesystem=filesystem).metadata
    return BatchPlan.model_validate_json(metadata[b"fmnist_plan"])


def plan_files(store: ObjectStore, table: str, batches: Iterable[str], scratch: Path) -> list[Path]:
    """Return the plans of batches as local files (`local_files`)."""
    return local_files(store, [plan_key(table, batch) for batch in batches], scratch)


def local_files(store: ObjectStore, keys: Iterable[str], scratch: Path) -> list[Path]:
    """Return objects as local files in the same order: the store's own files, or copies in `scratch`.

    Raises:
        JobStopped: an object is missing. The message names it.
    """
    from pyarrow import fs

    def file_of(key: str) -> Path:
        filesystem, path = store.arrow(key)
        local = isinstance(filesystem, fs.LocalFileSystem)
        file = Path(path) if local else scratch / key.replace("/", "+")
        try:
            if not local and not file.exists():
                fs.copy_files(path, str(file), source_filesystem=filesystem)
            file.stat()
        except FileNotFoundError:
            raise JobStopped(
                f"{store.uri(key)} is missing. It says which images are planned. Restore the object, or classify into "
                "another table."
            ) from None
        return file

    with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        return list(threads.map(file_of, keys))


class ShardInputs:
    """The inputs of a batch's shards, read one shard at a time."""

    def __init__(self, store: ObjectStore, plan: BatchPlan) -> None:
        self._store, self._key = store, plan_key(plan.table, plan.batch)
        with self._open() as file:
            self._metadata = file.metadata
        groups = range(self._metadata.num_row_groups)
        statistics = [self._metadata.row_group(number).column(0).statistics for number in groups]
        self._shards = [(found.min, found.max) for found in statistics]

    def of(self, shard: int) -> pa.Table:
        """Read a shard's inputs, as rows of `PLAN_SCHEMA`."""
        groups = [number for number, (first, last) in enumerate(self._shards) if first <= shard <= last]
        with self._open(self._metadata) as file:
            return file.read_row_groups(groups).filter(pc.field("shard") == shard)

    def _open(self, metadata: Any = None) -> pq.ParquetFile:
        filesystem, path = self._store.arrow(self._key)
        return pq.ParquetFile(path, filesystem=filesystem, metadata=metadata)
