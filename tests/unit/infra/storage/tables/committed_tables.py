"""Make prediction tables with committed batches, as runs leave them, without a model."""

import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

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
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.commit import PartSchemas, commit_batch
from infra.storage.tables.delta import DeltaSnapshot, open_delta
from infra.storage.tables.parts import PartFile, open_part
from infra.storage.tables.planning.batches import NumberedBatch, take_number
from infra.storage.tables.planning.plan import BatchPlan, Piece, cut_into_shards, write_plan
from infra.storage.tables.records import LeastConfident, Reason, ShardRecord, create_record

SCHEMAS = PartSchemas(prediction_schema(), quarantine_schema())
TABLE = "clothes"


def image(number: int) -> str:
    """Return the URI of an image."""
    return f"s3://bucket/{number:05d}.png"


def images(*numbers: int) -> list[str]:
    return [image(number) for number in numbers]


def plan_batch(store: ObjectStore, number: int, planned: Sequence[str], *, model: int = 1) -> BatchPlan:
    """Write the plan of a batch of one shard, and give it its number."""
    files = Counter(uri.partition("#")[0] for uri in planned)
    pieces = Piece.to_arrow(
        Piece(uri, f"{number}", "image", first_row=0, rows=count, offset=0, size=9) for uri, count in files.items()
    )
    with TemporaryDirectory() as scratch:
        plan = write_plan(
            store,
            table=TABLE,
            number=number,
            model_version=str(model),
            options={},
            inputs=cut_into_shards([pieces], 1e9),
            superseded=0,
            scratch=Path(scratch),
        )
    take_number(store, TABLE, NumberedBatch(number=number, batch=plan.batch, model_version=str(model), options={}))
    return plan


def write_predictions(store: ObjectStore, plan: BatchPlan, uris: Sequence[str], *, attempt: str = "") -> PartFile:
    """Write a part with predictions of class `number % 10` for images, `number` being the batch's."""
    found = Predictions(
        np.full(len(uris), plan.number % 10, np.int8),
        np.full(len(uris), 0.5, np.float32),
        np.full((len(uris), 10), 0.1, np.float32),
    )
    rows = prediction_batch(
        uris, found, pa.nulls(len(uris), pa.int16()), file_version=plan.number, model_version=plan.model_version
    )
    return _write(store, table_folder(plan.table), plan, rows, attempt)


def write_quarantine(store: ObjectStore, plan: BatchPlan, uris: Sequence[str], *, attempt: str = "") -> PartFile:
    """Write a part with quarantined images."""
    rows = quarantine_batch(
        pa.array(uris, pa.string()),
        {row: Rejection("damaged", "damaged: not an image", False) for row in range(len(uris))},
        pa.nulls(len(uris), pa.int16()),
        file_version=plan.number,
        model_version=plan.model_version,
    )
    return _write(store, quarantine_folder(plan.table), plan, rows, attempt)


def _write(store: ObjectStore, folder: str, plan: BatchPlan, rows: pa.RecordBatch, attempt: str) -> PartFile:
    name = part_name(plan.batch, 0, attempt or uuid4().hex[:12])
    with open_part(store, folder, name, rows.schema.with_metadata({"model": "fashion-mnist"})) as part:
        part.write(rows)
    return part.finished


def finish_shard(
    store: ObjectStore, plan: BatchPlan, predicted: Sequence[str], quarantined: Sequence[str]
) -> ShardRecord:
    """Write the parts and the record of the only shard of a batch."""
    reason = Reason(
        kind="damaged", reason="damaged: not an image", images=len(quarantined), example="".join(quarantined[:1])
    )
    record = ShardRecord(
        shard=0,
        planned=len(predicted) + len(quarantined),
        predicted=len(predicted),
        quarantined=len(quarantined),
        parts=[write_predictions(store, plan, predicted)] if predicted else [],
        quarantine=[write_quarantine(store, plan, quarantined)] if quarantined else [],
        reasons=[reason] if quarantined else [],
        least_confident=[
            LeastConfident(image=uri, confidence=0.5, probabilities=[], label=None) for uri in predicted[:1]
        ],
    )
    return create_record(store, plan, record)


def commit(
    store: ObjectStore, number: int, predicted: Sequence[str], quarantined: Sequence[str] = (), *, model: int = 1
) -> BatchBooks:
    """Plan a batch, finish its only shard and commit it."""
    plan = plan_batch(store, number, [*predicted, *quarantined], model=model)
    return commit_planned(store, plan, finish_shard(store, plan, predicted, quarantined))


def commit_planned(store: ObjectStore, plan: BatchPlan, record: ShardRecord) -> BatchBooks:
    """Commit a batch with the record of its only shard."""
    version = ModelVersion(
        name="fashion-mnist",
        version=int(plan.model_version),
        run_id="run",
        epoch=1,
        weights_sha256="0" * 64,
        metrics={},
        parameters={},
        data_version="tests",
        provenance=Provenance.now(),
    )
    return commit_batch(store, plan, {0: record}, SCHEMAS, model=version, temperature=1.0, seconds=1.0)


def opened(store: ObjectStore, folder: str) -> DeltaSnapshot:
    """Open a Delta table that exists."""
    snapshot = open_delta(store, folder)
    assert snapshot is not None
    return snapshot


def rows(store: ObjectStore, folder: str = "") -> list[dict[str, Any]]:
    """Return the rows of the predictions or of another Delta table, in the order of their images."""
    table: pa.Table = opened(store, folder or table_folder(TABLE)).dataset().to_table()
    return sorted(table.to_pylist(), key=lambda row: (row["image"], row["batch"]))


def uris(store: ObjectStore, folder: str = "") -> list[str]:
    return [row["image"] for row in rows(store, folder)]


def parts(store: ObjectStore, folder: str = "") -> list[str]:
    """Return the names of the parts of a Delta table."""
    return [part.name for part in opened(store, folder or table_folder(TABLE)).parts()]


def killed_at_random(seed: int, longest_seconds: float, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in another process, and kill the process some moments later with SIGKILL."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=_after_ready, args=(ready, dict(os.environ), function, arguments))
    child.start()
    assert ready.wait(60)
    time.sleep(random.Random(seed).uniform(0, longest_seconds))  # noqa: S311 (no secret)
    child.kill()
    child.join()


def _after_ready(ready: Any, environment: dict[str, str], function: Callable[..., Any], arguments: Any) -> None:
    import deltalake  # noqa: F401 (the time to import it doesn't count)

    os.environ.update(environment)
    ready.set()
    function(*arguments)
