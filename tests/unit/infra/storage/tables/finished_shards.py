"""Make the plans, parts and records of batches, as actors leave them."""

from collections.abc import Mapping
from uuid import uuid4

import pyarrow as pa

from infra.storage.keys import part_name, quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.commit import PartSchemas, commit_batch
from infra.storage.tables.delta import DeltaSnapshot, open_delta
from infra.storage.tables.parts import PartFile, open_part
from infra.storage.tables.planning.plan import BatchPlan
from infra.storage.tables.records import PredictionSummary, Reason, ShardRecord, create_record, read_records
from tests.unit.tasks.classification.image_inputs import model_version

PREDICTIONS = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False, metadata={"description": "URI of the image"}),
        pa.field("label", pa.int16()),
    ]
)
QUARANTINE = pa.schema([pa.field("image", pa.string(), nullable=False), pa.field("reason", pa.string())])
SCHEMAS = PartSchemas(PREDICTIONS, QUARANTINE)


def plan_of_shards(number: int = 1, *, shards: int = 2, planned: int = 5, table: str = "t") -> BatchPlan:
    """Describe a batch. Its inputs aren't in the store."""
    return BatchPlan(
        table=table,
        batch=f"{number:08d}-{number:016x}",
        number=number,
        model_version="1",
        options={},
        shards=shards,
        planned=planned,
    )


def images(count: int, *, first: int = 0) -> list[str]:
    return [f"file:///{number:03d}.png" for number in range(first, first + count)]


def write_part(store: ObjectStore, folder: str, name: str, rows: pa.RecordBatch) -> PartFile:
    with open_part(store, folder, name, rows.schema) as part:
        part.write(rows)
    return part.finished


def finish_shard(
    store: ObjectStore, plan: BatchPlan, shard: int, *, predicted: list[str], quarantined: list[str], number: int = 0
) -> ShardRecord:
    """Write a shard's parts and its record like an actor. Return the record that counts."""
    name = part_name(plan.batch, shard, uuid4().hex[:12])
    labels = [row % 10 for row in range(len(predicted))]
    rows = pa.record_batch([predicted, labels], schema=PREDICTIONS)
    errors = pa.record_batch([quarantined, ["truncated"] * len(quarantined)], schema=QUARANTINE)
    record = ShardRecord(
        shard=shard,
        number=number,
        planned=len(predicted) + len(quarantined),
        predicted=len(predicted),
        quarantined=len(quarantined),
        parts=[write_part(store, table_folder(plan.table), name, rows)] if predicted else [],
        quarantine=[write_part(store, quarantine_folder(plan.table), name, errors)] if quarantined else [],
        reasons=[Reason(kind="truncated", reason="truncated", images=len(quarantined), example=quarantined[0])]
        if quarantined
        else [],
        summary=PredictionSummary(class_counts=[len(predicted)]),
    )
    return create_record(store, plan, record)


def finish_batch(store: ObjectStore, plan: BatchPlan) -> dict[int, ShardRecord]:
    """Finish the two shards of `plan_of_shards`: three images are predicted, and two are quarantined."""
    first = 10 * plan.number
    return {
        0: finish_shard(store, plan, 0, predicted=images(2, first=first), quarantined=images(1, first=first + 2)),
        1: finish_shard(store, plan, 1, predicted=images(1, first=first + 3), quarantined=images(1, first=first + 4)),
    }


def commit(
    store: ObjectStore, plan: BatchPlan, records: Mapping[int, ShardRecord] | None = None, *, seconds: float = 2.0
) -> BatchBooks:
    """Commit a batch with its newest records, or with these."""
    return commit_batch(
        store,
        plan,
        read_records(store, plan) if records is None else records,
        SCHEMAS,
        model=model_version(1),
        temperature=1.5,
        seconds=seconds,
    )


def opened(store: ObjectStore, folder: str) -> DeltaSnapshot:
    """Open a Delta table that exists."""
    snapshot = open_delta(store, folder)
    assert snapshot is not None
    return snapshot


def rows_of(store: ObjectStore, folder: str) -> list[str]:
    """Return the images of a Delta table, in order."""
    rows: pa.Table = opened(store, folder).dataset().to_table(columns=["image"])
    return sorted(rows.column("image").to_pylist())
