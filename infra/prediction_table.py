"""Prediction tables: batches of parts, each committed by a manifest that is written last.

    predictions/<table>/batch=<id>/_plan.parquet            written first: the inputs of this batch, cut into shards
    predictions/<table>/batch=<id>/part-00017.parquet       rows of shard 17
    predictions/<table>/batch=<id>/_errors/part-00017.parquet
    predictions/<table>/batch=<id>/_manifest.json           written last: the commit

A part's footer holds its shard's books, so that what a killed run left is taken over without being read.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from infra.errors import JobError, RequestError
from infra.object_store import ObjectExists, ObjectNotFound, ObjectStore
from infra.provenance import Provenance

PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)
"""One row a piece of input: `rows` images of the file `uri`, from `first_row` on; `fingerprint` tells its versions."""

_TABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_BOOKS = b"fmnist_books"


class BooksDontBalance(JobError):
    """Rows predicted and rows quarantined don't add up to the rows planned."""


@dataclass(frozen=True)
class ShardBooks:
    """What became of one shard's images: `predicted + quarantined == planned`."""

    shard: int
    planned: int
    predicted: int
    quarantined: int
    seconds: float = 0.0
    """Spent on it, from first read to last write; 0 where an earlier run did it."""


class BatchPlan(BaseModel):
    """A batch that is to be done: its plan is in the store, its manifest may not be yet."""

    table: str
    batch: str
    model_version: str
    options: dict[str, Any]
    shards: int
    planned: int
    """Images."""

    @property
    def key(self) -> str:
        """Key of the batch's folder."""
        return f"{table_folder(self.table)}/batch={self.batch}"


class BatchManifest(BaseModel):
    """The commit of a batch: readers know it by this object alone."""

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
    """Keys of the parts with rows, relative to the store's root."""
    error_parts: list[str]
    """Likewise, of the quarantine."""
    seconds: float
    """From the first shard's start to the last one's end, in the run that finished the batch."""
    provenance: Provenance

    @property
    def images_per_second(self) -> float:
        """Rows over seconds."""
        return (self.predicted + self.quarantined) / self.seconds if self.seconds else 0.0


def table_folder(table: str) -> str:
    """Key of a table's folder.

    Raises:
        RequestError: `table` can't be a table's name.
    """
    if not _TABLE_NAME.fullmatch(table):
        raise RequestError(
            f"{table!r} is no table name: letters, digits, '_', '.' and '-', beginning with a letter or digit."
        )
    return f"predictions/{table}"


def manifest_key(table: str, batch: str) -> str:
    """Key of a batch's manifest."""
    return f"{table_folder(table)}/batch={batch}/_manifest.json"


def part_key(plan: BatchPlan, shard: int) -> str:
    """Key of a shard's rows."""
    return f"{plan.key}/part-{shard:05d}.parquet"


def errors_key(plan: BatchPlan, shard: int) -> str:
    """Key of a shard's quarantine."""
    return f"{plan.key}/_errors/part-{shard:05d}.parquet"


def list_tables(store: ObjectStore) -> list[str]:
    """Names of all tables, in order."""
    return list(store.list_folders("predictions/"))


def list_batches(store: ObjectStore, table: str) -> list[str]:
    """Ids of all batches, committed or not, in order."""
    folders = store.list_folders(f"{table_folder(table)}/")
    return [name.removeprefix("batch=") for name in folders if name.startswith("batch=")]


def read_manifest(store: ObjectStore, table: str, batch: str) -> BatchManifest | None:
    """A batch's manifest, or None where it is not committed."""
    try:
        return BatchManifest.model_validate_json(store.read(manifest_key(table, batch)))
    except ObjectNotFound:
        return None


def committed_batches(store: ObjectStore, table: str) -> list[BatchManifest]:
    """The manifests of all committed batches, oldest first."""
    manifests = (read_manifest(store, table, batch) for batch in list_batches(store, table))
    return sorted((m for m in manifests if m is not None), key=lambda manifest: manifest.provenance.created_at)


def uncommitted_plans(store: ObjectStore, table: str) -> Iterator[BatchPlan]:
    """The batches that have a plan but no manifest."""
    for batch in list_batches(store, table):
        if store.stat(manifest_key(table, batch)) is None and (plan := find_plan(store, table, batch)) is not None:
            yield plan


def find_plan(store: ObjectStore, table: str, batch: str) -> BatchPlan | None:
    """A batch's plan without its inputs, or None where it was never written."""
    key = f"{table_folder(table)}/batch={batch}/_plan.parquet"
    if store.stat(key) is None:
        return None
    filesystem, path = store.arrow(key)
    metadata = pq.read_schema(path, filesystem=filesystem).metadata
    return BatchPlan.model_validate_json(metadata[b"fmnist_plan"])


def read_plan_inputs(store: ObjectStore, table: str, batch: str) -> pa.Table:
    """The inputs of a batch, by `PLAN_SCHEMA`, in the order of their shards."""
    filesystem, path = store.arrow(f"{table_folder(table)}/batch={batch}/_plan.parquet")
    return pq.read_table(path, filesystem=filesystem)


def write_plan(
    store: ObjectStore, *, table: str, model_version: str, options: dict[str, Any], inputs: pa.Table
) -> BatchPlan:
    """Write a batch's plan. Its id is a digest of inputs, model and options, so that planning twice is planning once.

    Args:
        store: where to.
        table: the prediction table's name.
        model_version: the model that is to classify.
        options: whatever else decides what the rows will be.
        inputs: by `PLAN_SCHEMA`, in the order of their shards, numbered from 0 without gaps.
    """
    identity = hashlib.sha256(json.dumps([model_version, options], sort_keys=True).encode())
    for batch in inputs.to_batches():
        for row in zip(*(batch.column(name).to_pylist() for name in PLAN_SCHEMA.names), strict=True):
            identity.update(repr(row).encode())
    plan = BatchPlan(
        table=table,
        batch=identity.hexdigest()[:16],
        model_version=model_version,
        options=options,
        shards=inputs.column("shard")[-1].as_py() + 1,
        planned=sum(inputs.column("rows").to_pylist()),
    )
    described = inputs.replace_schema_metadata({"fmnist_plan": plan.model_dump_json()})
    buffer = pa.BufferOutputStream()
    pq.write_table(described, buffer, compression="zstd")
    try:
        store.create(f"{plan.key}/_plan.parquet", buffer.getvalue().to_pybytes())
    except ObjectExists:
        found = find_plan(store, table, plan.batch)
        if found is not None:
            return found
    return plan


def read_rows(store: ObjectStore, manifests: Iterable[BatchManifest], columns: list[str] | None = None) -> pa.Table:
    """The rows of committed batches."""
    parts = [store.arrow(key) for manifest in manifests for key in manifest.parts]
    return pa.concat_tables(pq.read_table(path, filesystem=filesystem, columns=columns) for filesystem, path in parts)


def write_part(
    store: ObjectStore, key: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], books: ShardBooks | None
) -> None:
    """Write a Parquet object: zstd, with statistics, and with a shard's books in its footer."""
    metadata = dict(schema.metadata or {})
    if books is not None:
        # Not how long it took: a part's bytes are a function of its shard, so that writing it twice changes nothing.
        metadata[_BOOKS] = json.dumps(books.__dict__ | {"seconds": 0.0}).encode()
    with (
        store.publish(key) as stream,
        pq.ParquetWriter(stream, schema.with_metadata(metadata), compression="zstd") as writer,
    ):
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]))


def read_books(store: ObjectStore, plan: BatchPlan, shard: int) -> ShardBooks | None:
    """A finished shard's books from its part's footer, or None where it has no part yet."""
    key = part_key(plan, shard)
    if store.stat(key) is None:
        return None
    filesystem, path = store.arrow(key)
    books = json.loads(pq.read_schema(path, filesystem=filesystem).metadata[_BOOKS])
    return ShardBooks(**(books | {"seconds": 0.0}))


def commit(
    store: ObjectStore, plan: BatchPlan, books: list[ShardBooks], *, model: dict[str, Any], seconds: float
) -> BatchManifest:
    """Check the books of every shard, then write the manifest that makes the batch visible.

    Raises:
        BooksDontBalance: a shard is missing, or an image is neither predicted nor quarantined, or is both.
    """
    by_shard = {entry.shard: entry for entry in books}
    if sorted(by_shard) != list(range(plan.shards)):
        missing = sorted(set(range(plan.shards)) - by_shard.keys())
        raise BooksDontBalance(f"Batch {plan.batch} of {plan.table}: shards {missing} have no books; run it again.")
    for entry in books:
        if entry.predicted + entry.quarantined != entry.planned:
            raise BooksDontBalance(
                f"Batch {plan.batch} of {plan.table}, shard {entry.shard}: {entry.predicted} predicted + "
                f"{entry.quarantined} quarantined is not {entry.planned} planned."
            )
    if sum(entry.planned for entry in books) != plan.planned:
        raise BooksDontBalance(
            f"Batch {plan.batch} of {plan.table}: its shards planned {sum(e.planned for e in books)} images, "
            f"the plan {plan.planned}."
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
        store.create(manifest_key(plan.table, plan.batch), manifest.model_dump_json(indent=2).encode())
    except ObjectExists:
        committed = read_manifest(store, plan.table, plan.batch)
        if committed is not None:
            return committed
    return manifest
