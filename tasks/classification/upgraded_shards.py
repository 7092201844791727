"""Convert rows of before Delta Lake, and take over the finished shards of a batch that wasn't committed.

These shards are copied into parts of today, because a late worker of the older version may still overwrite its own.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

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
from infra.errors import JobStopped
from infra.storage.keys import part_name, quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore
from infra.storage.tables import upgrade as old
from infra.storage.tables.parts import PartFile, open_part
from infra.storage.tables.planning.plan import BatchPlan, find_plan
from infra.storage.tables.records import ShardRecord, create_record, read_records
from tasks.classification.reasons import is_retryable, reason_kind
from tasks.classification.tally import ShardTally


def take_over_shards(store: ObjectStore, table: str, batch: str, uris: old.CanonicalUris) -> None:
    """Create the records of the shards that a run of the older version has finished. The next run does the others."""
    plan = find_plan(store, table, batch)
    if plan is None:
        return
    done = read_records(store, plan)
    for shard in old.finished_shards(store, plan):
        if shard.shard not in done:
            record = _convert(store, plan, shard, uris)
            if record is not None:
                create_record(store, plan, record)


def convert_quarantine(
    rows: pa.RecordBatch, number: int, model_version: str, uris: old.CanonicalUris
) -> pa.RecordBatch:
    """Convert quarantined images of before Delta Lake to rows of `quarantine_schema`.

    Args:
        rows: old rows `[n]`.
        number: number of the batch.
        model_version: model version of the batch.
        uris: converter of URIs.
    """
    return quarantine_batch(
        uris.of_images(rows.column("image")),
        _rejections(rows),
        rows.column("label"),
        file_version=number,
        model_version=model_version,
        transform=1,
    )


def _convert(store: ObjectStore, plan: BatchPlan, shard: old.OldShard, uris: old.CanonicalUris) -> ShardRecord | None:
    """Copy a shard into new parts, or return None if its old parts don't hold what its books say."""
    tally = ShardTally(len(CLASS_NAMES))
    rows, errors = old.old_keys(plan, shard)
    name = part_name(plan.batch, shard.shard, uuid4().hex[:12])
    try:
        parts = _write(
            store, table_folder(plan.table), name, prediction_schema(), _rows(store, plan, rows, uris, tally)
        )
        quarantine = (
            _write(
                store,
                quarantine_folder(plan.table),
                name,
                quarantine_schema(),
                _errors(store, plan, errors, uris, tally),
            )
            if errors
            else []
        )
    except JobStopped:  # the quarantine is missing
        return None
    counts = sum(part.rows for part in parts), sum(part.rows for part in quarantine)
    if counts != (shard.predicted, shard.quarantined):
        return None
    return ShardRecord(
        shard=shard.shard,
        planned=shard.planned,
        predicted=shard.predicted,
        quarantined=shard.quarantined,
        parts=parts,
        quarantine=quarantine,
        reasons=tally.reasons,
        summary=tally.summary,
        least_confident=tally.least_confident,
    )


def _write(
    store: ObjectStore, folder: str, name: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> list[PartFile]:
    """Write rows as a part. Without rows there is none."""
    part = None
    with ExitStack() as opened:
        for rows in batches:
            if part is None:
                part = opened.enter_context(open_part(store, folder, name, schema))
            part.write(rows)
    return [part.finished] if part else []


def _rows(
    store: ObjectStore, plan: BatchPlan, key: str, uris: old.CanonicalUris, tally: ShardTally
) -> Iterator[pa.RecordBatch]:
    for rows in old.old_rows(store, key):
        images, labels = uris.of_images(rows.column("image")), rows.column("label")
        probabilities = rows.column("probabilities").flatten().to_numpy().reshape(len(rows), -1)
        predictions = Predictions(
            np.asarray(rows.column("predicted_class")), np.asarray(rows.column("confidence")), probabilities
        )
        tally.add_predictions(images, predictions, labels)
        yield prediction_batch(
            images, predictions, labels, file_version=plan.number, model_version=plan.model_version, transform=1
        )


def _errors(
    store: ObjectStore, plan: BatchPlan, key: str, uris: old.CanonicalUris, tally: ShardTally
) -> Iterator[pa.RecordBatch]:
    for rows in old.old_rows(store, key):
        tally.add_rejections(uris.of_images(rows.column("image")), _rejections(rows))
        yield convert_quarantine(rows, plan.number, plan.model_version, uris)


def _rejections(rows: pa.RecordBatch) -> dict[int, Rejection]:
    reasons = rows.column("reason").to_pylist()
    return {row: Rejection(reason_kind(reason), reason, is_retryable(reason)) for row, reason in enumerate(reasons)}
