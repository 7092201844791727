"""Prediction tables: batches of parts, each batch committed by its manifest.

    predictions/<table>/batch=<id>/_plan.parquet            written first (infra/storage/batch_plan.py)
    predictions/<table>/batch=<id>/part-00017.parquet       rows of shard 17
    predictions/<table>/batch=<id>/_errors/part-00017.parquet
    predictions/<table>/batch=<id>/_manifest.json           written last: the commit marker

A part's footer holds the books of its shard. So a run can take over the parts of a killed run without reading them.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from infra.errors import JobError
from infra.provenance import Provenance
from infra.storage import keys
from infra.storage.object_store import ObjectExists, ObjectNotFound, ObjectStore

_BOOKS = "fmnist_books"

ROW_GROUP = 65_536
"""Rows in a row group of a part, about 5 MB: large enough to be worth skipping, small enough to hold in memory."""
_PARQUET: dict[str, Any] = {
    "compression": "zstd",
    # For other columns, Parquet would start a dictionary and abandon it.
    "use_dictionary": ["predicted_label", "predicted_class", "label", "model_version", "reason"],
}


class BooksDontBalance(JobError):
    """The images predicted and quarantined don't add up to the images planned."""


@dataclass(frozen=True)
class ShardBooks:
    """What became of a shard's images: `predicted + quarantined == planned`."""

    shard: int
    planned: int
    predicted: int
    quarantined: int
    seconds: float = 0.0
    """Time from the first read to the last write. 0 if an earlier run did the shard."""


class BatchPlan(BaseModel):
    """A planned batch: its plan is in the store, its manifest may not be yet."""

    table: str
    batch: str
    model_version: str
    options: dict[str, Any]
    shards: int
    planned: int
    """Number of images."""

    @property
    def key(self) -> str:
        """Key of the batch's folder."""
        return keys.batch_folder(self.table, self.batch)


class BatchManifest(BaseModel):
    """The commit marker of a batch, and all that readers need to know about it."""

    table: str
    batch: str
    model_version: str
    model: dict[str, Any]
    """The registry's record of the version."""
    options: dict[str, Any]
    planned: int
    predicted: int
    quarantined: int
    parts: list[str]
    """Keys of the parts with predictions, relative to the store's root."""
    error_parts: list[str]
    """Keys of the parts with quarantined images, relative to the store's root."""
    seconds: float
    """Time from the start of the first shard to the end of the last, in the run that finished the batch."""
    provenance: Provenance

    @property
    def images_per_second(self) -> float:
        """Throughput of the run that finished the batch."""
        return (self.predicted + self.quarantined) / self.seconds if self.seconds else 0.0


def part_key(plan: BatchPlan, shard: int) -> str:
    """Return the key of a shard's rows."""
    return keys.part_key(plan.table, plan.batch, shard)


def errors_key(plan: BatchPlan, shard: int) -> str:
    """Return the key of a shard's quarantine."""
    return keys.errors_key(plan.table, plan.batch, shard)


def list_tables(store: ObjectStore) -> list[str]:
    """List the names of all tables, in order."""
    return list(store.list_folders(keys.PREDICTIONS))


def read_manifest(store: ObjectStore, table: str, batch: str) -> BatchManifest | None:
    """Read the manifest of a batch, or return None if the batch isn't committed."""
    try:
        return BatchManifest.model_validate_json(store.read(keys.manifest_key(table, batch)))
    except ObjectNotFound:
        return None


def open_rows(store: ObjectStore, manifests: Iterable[BatchManifest]) -> Any:
    """Open the rows of committed batches, at least one, as a `pyarrow.dataset.Dataset` that can be streamed."""
    from pyarrow import dataset

    places = [store.arrow(key) for manifest in manifests for key in manifest.parts]
    return dataset.dataset([path for _, path in places], filesystem=places[0][0], format="parquet")


def read_rows(store: ObjectStore, manifests: Iterable[BatchManifest], columns: list[str] | None = None) -> pa.Table:
    """Read the rows of committed batches."""
    parts = [store.arrow(key) for manifest in manifests for key in manifest.parts]
    return pa.concat_tables(pq.read_table(path, filesystem=filesystem, columns=columns) for filesystem, path in parts)


@contextmanager
def open_part(store: ObjectStore, key: str, schema: pa.Schema) -> Iterator["PartWriter"]:
    """Write a Parquet object as a stream. It exists when the block ends, unless the block raises."""
    with store.publish(key) as stream, pq.ParquetWriter(stream, schema, **_PARQUET) as writer:
        part = PartWriter(writer)
        yield part
        part.flush()


class PartWriter:
    """A Parquet object in the making: zstd, with statistics, in row groups of a fixed size."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self.rows = 0
        """Number of rows written."""

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

    def note(self, books: ShardBooks) -> None:
        """Put a shard's books into the footer."""
        # Without the seconds: a part's bytes must follow from its shard, so that writing it twice changes nothing.
        self._writer.add_key_value_metadata({_BOOKS: json.dumps(books.__dict__ | {"seconds": 0.0})})

    def flush(self) -> None:
        """End a row group."""
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held), row_group_size=ROW_GROUP)
        self._held, self._held_rows = [], 0


def existing_parts(store: ObjectStore, plan: BatchPlan) -> list[int]:
    """List the shards of a batch that have a part. The listing may miss parts written at the same moment."""
    names = (stat.key.removeprefix(f"{plan.key}/") for stat in store.list(f"{plan.key}/"))
    shards = (shard for name in names if (shard := keys.shard_of(name)) is not None)
    return [shard for shard in shards if shard < plan.shards]


def read_books(store: ObjectStore, plan: BatchPlan, shard: int) -> ShardBooks | None:
    """Read a shard's books from the footer of its part, or return None if it has no part yet."""
    key = part_key(plan, shard)
    if store.stat(key) is None:
        return None
    filesystem, path = store.arrow(key)
    books = json.loads(pq.read_metadata(path, filesystem=filesystem).metadata[_BOOKS.encode()])
    return ShardBooks(**books)


def commit(
    store: ObjectStore, plan: BatchPlan, books: list[ShardBooks], *, model: dict[str, Any], seconds: float
) -> BatchManifest:
    """Check the books of every shard, then commit the batch by writing its manifest.

    Raises:
        BooksDontBalance: a shard is missing, or an image is neither predicted nor quarantined, or both.
    """
    by_shard = {entry.shard: entry for entry in books}
    if sorted(by_shard) != list(range(plan.shards)):
        missing = sorted(set(range(plan.shards)) - by_shard.keys())
        raise BooksDontBalance(f"Batch {plan.batch} of {plan.table}: shards {missing} have no books. Run it again.")
    for entry in books:
        if entry.predicted + entry.quarantined != entry.planned:
            raise BooksDontBalance(
                f"Batch {plan.batch} of {plan.table}, shard {entry.shard}: {entry.predicted} predicted + "
                f"{entry.quarantined} quarantined is not {entry.planned} planned."
            )
    if sum(entry.planned for entry in books) != plan.planned:
        raise BooksDontBalance(
            f"Batch {plan.batch} of {plan.table}: its shards have {sum(e.planned for e in books)} images, but its plan "
            f"has {plan.planned}."
        )
    manifest = BatchManifest(
        table=plan.table,
        batch=plan.batch,
        model_version=plan.model_version,
        model=model,
        options=plan.options,
        planned=plan.planned,
        predicted=sum(entry.predicted for entry in books),
        quarantined=sum(entry.quarantined for entry in books),
        parts=[part_key(plan, shard) for shard in range(plan.shards)],
        error_parts=[
            errors_key(plan, entry.shard) for entry in sorted(books, key=lambda e: e.shard) if entry.quarantined
        ],
        seconds=seconds,
        provenance=Provenance.now(),
    )
    try:
        store.create(keys.manifest_key(plan.table, plan.batch), manifest.model_dump_json(indent=2).encode())
    except ObjectExists:
        committed = read_manifest(store, plan.table, plan.batch)
        if committed is not None:
            return committed
    return manifest
