"""Classify a batch's shards on a pool of Ray actors."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from fmnist_model.images import IMAGE_COLUMN, LABEL_COLUMN, decode_images
from infra.checkpoints import read_file, read_record
from infra.errors import JobError
from infra.input_files import filesystem_of
from infra.model_registry import ModelVersion
from infra.object_store import ObjectStore, open_store
from infra.prediction_table import (
    BatchPlan,
    ShardBooks,
    errors_key,
    part_key,
    read_books,
    read_plan_inputs,
    write_part,
)
from infra.progress import ProgressBoard
from infra.ray_cluster import cluster_cpus, cluster_gpus
from infra.settings import load_settings
from tasks.planning import PlannedWork
from tasks.training import WEIGHTS

_BATCH = 4096
"""Images read, decoded and classified at a time: bounds an actor's memory."""


@dataclass(frozen=True)
class ClassifiedBatch:
    """A batch whose shards are all done."""

    plan: BatchPlan
    books: list[ShardBooks]
    seconds: float
    """From the moment the first actor was ready to the end of the last shard."""


@task(name="classify shards", cache_policy=NO_CACHE)
def classify_shards(work: PlannedWork) -> list[ClassifiedBatch]:
    """Classify the shards that have no part yet.

    Raises:
        JobError: an actor failed, or died more often than it is restarted.
    """
    store = open_store(load_settings().store)
    return [_classify_batch(store, plan, work.model) for plan in work.plans]


def _classify_batch(store: ObjectStore, plan: BatchPlan, model: ModelVersion) -> ClassifiedBatch:
    import ray
    from ray.util import ActorPool

    books = [found for shard in range(plan.shards) if (found := read_books(store, plan, shard))]
    missing = sorted(set(range(plan.shards)) - {entry.shard for entry in books})
    began = time.perf_counter()
    if missing:
        ProgressBoard().post("start classifiers", table=plan.table, shards=len(missing))
        gpus = cluster_gpus()
        actor = ray.remote(num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, max_restarts=3, max_task_retries=3)(
            _ShardClassifier
        )
        actors = [actor.remote(store.root, plan, model) for _ in range(min(len(missing), gpus or cluster_cpus()))]
        try:
            ray.wait([handle.ready.remote() for handle in actors], num_returns=1)
            began = time.perf_counter()
            inputs = read_plan_inputs(store, plan.table, plan.batch)
            shards = ((shard, inputs.filter(pc.field("shard") == shard)) for shard in missing)
            results = ActorPool(actors).map_unordered(lambda handle, shard: handle.classify.remote(*shard), shards)
            books += _watched(results, plan, books)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise JobError(
                f"Classification into {plan.table} failed: {str(cause).strip().splitlines()[-1]}. "
                "The finished shards are kept; run it again."
            ) from error
        finally:
            for handle in actors:
                ray.kill(handle)
    return ClassifiedBatch(plan=plan, books=sorted(books, key=lambda b: b.shard), seconds=time.perf_counter() - began)


def _watched(results: Iterator[ShardBooks], plan: BatchPlan, earlier: list[ShardBooks]) -> Iterator[ShardBooks]:
    """Pass books on, and post how far the batch is after each."""
    board = ProgressBoard()
    began = time.perf_counter()
    done = list(earlier)
    for entry in results:
        done.append(entry)
        images = sum(books.planned for books in done)
        board.post(
            "classify",
            table=plan.table,
            shards_done=len(done),
            shards=plan.shards,
            images=images,
            planned=plan.planned,
            quarantined=sum(books.quarantined for books in done),
            images_per_second=(images - sum(books.planned for books in earlier)) / (time.perf_counter() - began),
        )
        yield entry


class _ShardClassifier:
    """The actor: a model loaded once, then shard after shard."""

    def __init__(self, store_root: str, plan: BatchPlan, model: ModelVersion) -> None:
        import torch

        from fmnist_model.classifier import Classifier
        from fmnist_model.network import best_device, load_weights

        torch.set_num_threads(1)
        self._store = open_store(store_root)
        self._plan = plan
        record = read_record(self._store, model.run_id, model.epoch)
        network = load_weights(read_file(self._store, record, WEIGHTS), self._store.uri(record.key))
        self._classifier = Classifier(network, best_device())

    def ready(self) -> None:
        """Return once the model is loaded."""

    def classify(self, shard: int, inputs: pa.Table) -> ShardBooks:
        from fmnist_model.predictions import prediction_batch, prediction_schema, quarantine_schema

        began = time.perf_counter()
        rows: list[pa.RecordBatch] = []
        errors: list[pa.RecordBatch] = []
        for images, encoded, labels in _read(inputs):
            decoded = decode_images(encoded)
            predictions = self._classifier.classify(decoded.pixels)
            chosen = pa.array(decoded.rows)
            rows.append(
                prediction_batch(images.take(chosen), predictions, labels.take(chosen), self._plan.model_version)
            )
            if decoded.rejected:
                rejected = pa.array([row for row, _ in decoded.rejected])
                reasons = pa.array([reason for _, reason in decoded.rejected], pa.string())
                errors.append(
                    pa.record_batch([images.take(rejected), reasons, labels.take(rejected)], schema=quarantine_schema())
                )
        books = ShardBooks(
            shard=shard,
            planned=sum(inputs.column("rows").to_pylist()),
            predicted=sum(len(batch) for batch in rows),
            quarantined=sum(len(batch) for batch in errors),
            seconds=time.perf_counter() - began,
        )
        # The quarantine first: a shard counts as done when its part is there.
        if errors:
            write_part(self._store, errors_key(self._plan, shard), quarantine_schema(), errors, None)
        metadata = {"model_version": self._plan.model_version}
        write_part(self._store, part_key(self._plan, shard), prediction_schema().with_metadata(metadata), rows, books)
        return books


def _read(inputs: pa.Table) -> Iterator[tuple[pa.Array, pa.Array, pa.Array]]:
    """Read a shard's pieces: URIs, images as `decode_images` takes them, and labels as int8, null where unknown."""
    files: list[str] = []
    for piece in inputs.to_pylist():
        if piece["kind"] == "image":
            files.append(piece["uri"])
            if len(files) == _BATCH:
                yield _read_files(files)
                files = []
        else:
            yield from _read_parquet(piece)
    if files:
        yield _read_files(files)


def _read_files(uris: list[str]) -> tuple[pa.Array, pa.Array, pa.Array]:
    data = []
    for uri in uris:
        filesystem, path = filesystem_of(uri)
        try:
            with filesystem.open_input_file(path) as file:
                data.append(file.read())
        except FileNotFoundError:
            data.append(None)
    return pa.array(uris), pa.array(data, pa.binary()), pa.nulls(len(uris), pa.int8())


def _read_parquet(piece: dict[str, Any]) -> Iterator[tuple[pa.Array, pa.Array, pa.Array]]:
    filesystem, path = filesystem_of(piece["uri"])
    with pq.ParquetFile(path, filesystem=filesystem) as parquet:
        has_label = LABEL_COLUMN in parquet.schema_arrow.names
        groups, first, end = [], 0, piece["first_row"] + piece["rows"]
        for number in range(parquet.metadata.num_row_groups):
            if piece["first_row"] <= first < end:
                groups.append(number)
            first += parquet.metadata.row_group(number).num_rows
        row = piece["first_row"]
        columns = [IMAGE_COLUMN, LABEL_COLUMN] if has_label else [IMAGE_COLUMN]
        for batch in parquet.iter_batches(_BATCH, row_groups=groups, columns=columns):
            uris = pa.array([f"{piece['uri']}#row={number}" for number in range(row, row + len(batch))])
            labels = batch.column(LABEL_COLUMN).cast(pa.int8()) if has_label else pa.nulls(len(batch), pa.int8())
            yield uris, batch.column(IMAGE_COLUMN), labels
            row += len(batch)
