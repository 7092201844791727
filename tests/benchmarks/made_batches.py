"""Make batches with real plans, parts and records, without images and without classifying anything."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.predictions import (
    Predictions,
    Rejection,
    prediction_batch,
    prediction_schema,
    quarantine_batch,
    quarantine_schema,
)
from infra.provenance import Provenance
from infra.storage.keys import part_name, quarantine_folder, table_folder
from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import ObjectStore
from infra.storage.tables.commit import PartSchemas
from infra.storage.tables.parts import PartFile, open_part
from infra.storage.tables.planning.batches import NumberedBatch, take_number
from infra.storage.tables.planning.plan import PLAN_SCHEMA, BatchPlan, write_plan
from infra.storage.tables.records import ShardRecord, create_record
from tasks.classification.options import ReadOptions
from tasks.classification.tally import ShardTally

SCHEMAS = PartSchemas(prediction_schema(), quarantine_schema())
MODEL = ModelVersion(
    name="fashion-mnist",
    version=1,
    run_id="benchmark",
    epoch=1,
    weights_sha256="0" * 64,
    metrics={},
    parameters={},
    data_version="none",
    provenance=Provenance.now(),
)
"""A model version without a checkpoint."""


def plan_made(store: ObjectStore, table: str, number: int, *, shards: int, rows: int, scratch: Path) -> BatchPlan:
    """Plan a batch of `shards` Parquet files that don't exist, each a shard of `rows` images, and give it its number.

    Args:
        store: store of the table.
        table: name of the prediction table.
        number: number of the batch.
        shards: number of shards.
        rows: images per shard.
        scratch: folder for temporary files. No other thread may use it.
    """
    piece: dict[str, Any] = {"kind": "parquet", "first_row": 0, "rows": rows, "offset": 0, "size": 600 * rows}
    pieces = [
        piece | {"shard": shard, "uri": made_uri(number, shard), "fingerprint": f"{number}-{shard}", "label": None}
        for shard in range(shards)
    ]
    plan = write_plan(
        store,
        table=table,
        number=number,
        model_version=str(MODEL.version),
        options=ReadOptions().to_record(),
        inputs=[pa.RecordBatch.from_pylist(pieces, schema=PLAN_SCHEMA)],
        superseded=0,
        scratch=scratch,
    )
    entry = NumberedBatch(
        number=number, batch=plan.batch, model_version=plan.model_version, options=ReadOptions().to_record()
    )
    take_number(store, table, entry)
    return plan


def made_uri(number: int, shard: int) -> str:
    """Return the URI of the file that a shard reads."""
    return f"s3://images/{number:06d}/{shard:06d}.parquet"


def finish_shard(
    store: ObjectStore, plan: BatchPlan, shard: int, rows: int, *, rejected: int = 0, attempt: str = "0123456789ab"
) -> ShardRecord:
    """Write the parts and the record of a shard of `rows` images with random predictions.

    Args:
        store: store of the table.
        plan: plan of the batch.
        shard: number of the shard.
        rows: number of images.
        rejected: number of images to quarantine, the first ones.
        attempt: name of the attempt.
    """
    images = pa.array([f"{made_uri(plan.number, shard)}#row={row}" for row in range(rows)])
    labels = pa.array(np.arange(rows) % len(CLASS_NAMES), pa.int16())
    predictions = random_predictions(rows - rejected, seed=shard)
    kept = images.slice(rejected), predictions, labels.slice(rejected)
    rejections = {row: Rejection("damaged", "damaged: not a PNG", retryable=False) for row in range(rejected)}
    versions: Any = {"file_version": plan.number, "model_version": plan.model_version}
    tally = ShardTally(len(CLASS_NAMES))
    tally.add_predictions(*kept)
    tally.add_rejections(images, rejections)
    name = part_name(plan.batch, shard, attempt)
    parts = [_part(store, table_folder(plan.table), name, prediction_batch(*kept, **versions))]
    quarantine = quarantine_batch(images, rejections, labels, **versions) if rejections else None
    record = ShardRecord(
        shard=shard,
        planned=rows,
        predicted=rows - rejected,
        quarantined=rejected,
        seconds=0.5,
        parts=parts,
        quarantine=[_part(store, quarantine_folder(plan.table), name, quarantine)] if quarantine else [],
        reasons=tally.reasons,
        summary=tally.summary,
        least_confident=tally.least_confident,
    )
    return create_record(store, plan, record)


def unwritten_part(batch: str) -> PartFile:
    """Describe a part of one row that doesn't exist, for tables whose rows nobody reads."""
    statistics = '{"numRecords": 1, "minValues": {}, "maxValues": {}, "nullCount": {}}'
    return PartFile(
        name=part_name(batch, 0, "0123456789ab"), size=4096, sha256="0" * 64, etag="0", rows=1, statistics=statistics
    )


def random_predictions(rows: int, seed: int) -> Predictions:
    """Draw probabilities `[rows, classes]`, as a softmax of random logits."""
    logits = np.random.default_rng(seed).normal(0, 3, (rows, len(CLASS_NAMES)))
    exponentials = np.exp(logits)
    probabilities = (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)
    return Predictions(probabilities.argmax(1).astype(np.int8), probabilities.max(1), probabilities)


def _part(store: ObjectStore, folder: str, name: str, rows: pa.RecordBatch) -> PartFile:
    with open_part(store, folder, name, rows.schema) as part:
        part.write(rows)
    return part.finished
