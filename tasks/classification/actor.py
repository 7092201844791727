"""Classify shards in an actor process."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from fmnist_model.images.decode import decode_images
from infra.cluster.progress_board import ShardProgress
from infra.cluster.prometheus import StageTimer
from infra.cluster.worker_logs import forward_logs
from infra.importing import gc_paused
from infra.prefetch import prefetched
from infra.storage.batch_plan import ShardInputs
from infra.storage.model_registry import ModelVersion, read_weights
from infra.storage.object_store import open_store
from infra.storage.prediction_table import (
    BatchPlan,
    PartWriter,
    ShardBooks,
    errors_key,
    open_part,
    part_key,
    read_books,
)
from tasks.classification.options import ReadOptions
from tasks.classification.read import ReadImages, read_shard
from tasks.prometheus import IMAGES, SHARDS, STAGE_SECONDS, count_failures, reason_kind

if TYPE_CHECKING:
    from fmnist_model.predictions import Predictions

_log = logging.getLogger(__name__)


def shard_name(plan: BatchPlan, shard: int) -> str:
    """Name a shard for the progress board."""
    return f"{plan.batch}/{shard}"


class ShardClassifier:
    """Load a model once, then classify shards one by one. Reading, classifying and writing overlap."""

    def __init__(self, store_root: str, plan: BatchPlan, model: ModelVersion) -> None:
        with gc_paused():
            import torch

            from fmnist_model.classifier import Classifier
            from fmnist_model.network import best_device, load_weights

        torch.set_num_threads(1)
        self._logs = forward_logs("classifier")
        self._store = open_store(store_root)
        self._plan = plan
        self._inputs = ShardInputs(self._store, plan)
        self._options = ReadOptions.from_record(plan.options)
        network = load_weights(*read_weights(self._store, model))
        temperature = model.temperature if self._options.calibrate else 1.0
        self._classifier = Classifier(network, best_device(), temperature)
        self._provenance = {
            "model": model.name,
            "model_version": plan.model_version,
            "run_id": model.run_id,
            "weights_sha256": model.weights_sha256,
            "temperature": str(temperature),
            "options": json.dumps(self._options.to_record()),
        }

    def ready(self) -> None:
        """Return when the model is loaded. The actor pool calls this to wait for an actor."""

    def work(self, shard: int) -> ShardBooks:
        """Classify a shard, unless another run has already done it."""
        with count_failures():
            try:
                return self._work(shard)
            finally:
                self._logs.await_board()  # the pool kills an actor right after its last shard

    def _work(self, shard: int) -> ShardBooks:
        started = time.perf_counter()
        self._logs.source = f"shard {shard}"
        done = read_books(self._store, self._plan, shard)
        if done is not None:
            SHARDS.add(1, outcome="found", error="")
            return done
        inputs = self._inputs.of(shard)
        planned = sum(inputs.column("rows").to_pylist())
        stages = StageTimer(STAGE_SECONDS)
        with (
            prefetched(stages.measure_each("read", read_shard(inputs, self._options)), 1) as batches,
            prefetched(map(partial(self._classify, stages), batches), 1) as classified,
        ):
            books = self._write(shard, planned, classified, started, stages)
        stages.export()
        SHARDS.add(1, outcome="done", error="")
        _log.info("%s images classified in %.2f s.", f"{books.predicted:,}", books.seconds)
        if books.quarantined:
            _log.warning("%s of %s images are in quarantine.", f"{books.quarantined:,}", f"{planned:,}")
        return books

    def _classify(self, stages: StageTimer, batch: ReadImages) -> "_ClassifiedImages":
        with stages.measure("decode"):
            decoded = decode_images(batch.encoded, invert=self._options.invert)
        rejected = {row: batch.reasons.get(row, reason) for row, reason in decoded.rejected}
        with stages.measure("forward"):
            predictions = self._classifier.classify(decoded.pixels)
        return _ClassifiedImages(batch, pa.array(decoded.rows), predictions, rejected)

    def _write(
        self, shard: int, planned: int, classified: "Iterator[_ClassifiedImages]", started: float, stages: StageTimer
    ) -> ShardBooks:
        """Write the shard's rows and its quarantine, each as a Parquet part."""
        from fmnist_model.predictions import prediction_batch, prediction_schema, quarantine_batch, quarantine_schema

        version = self._plan.model_version
        schema = prediction_schema().with_metadata(self._provenance)
        # The stack closes the quarantine first. The part with the rows has to appear last: it marks the shard as done.
        with ExitStack() as parts:
            rows = parts.enter_context(open_part(self._store, part_key(self._plan, shard), schema))
            errors: PartWriter | None = None
            progress = ShardProgress(shard_name(self._plan, shard))
            reasons: Counter[str] = Counter()
            for batch in classified:
                images, labels = batch.read.images, batch.read.labels
                with stages.measure("write"):
                    if batch.rejected:
                        if errors is None:
                            key = errors_key(self._plan, shard)
                            errors = parts.enter_context(open_part(self._store, key, quarantine_schema()))
                        errors.write(quarantine_batch(images, batch.rejected, labels))
                        images, labels = images.take(batch.rows), labels.take(batch.rows)
                        reasons.update(map(reason_kind, batch.rejected.values()))
                    rows.write(prediction_batch(images, batch.predictions, labels, version))
                progress.report(rows.rows + (errors.rows if errors else 0))
            if errors is None:  # an attempt that was killed may have left a quarantine
                self._store.delete(errors_key(self._plan, shard))
            books = ShardBooks(
                shard=shard,
                planned=planned,
                predicted=rows.rows,
                quarantined=errors.rows if errors else 0,
                seconds=time.perf_counter() - started,
            )
            rows.note(books)
            with stages.measure("write"):
                parts.close()
        _count_images(books, reasons)
        return books


@dataclass(frozen=True)
class _ClassifiedImages:
    read: ReadImages
    """The batch before decoding, n images."""
    rows: pa.Array
    """Rows of the batch that were classified, `[m]`."""
    predictions: "Predictions"
    """Predictions for these rows, `[m]`."""
    rejected: dict[int, str]
    """Reason by row, for each image that was not classified."""


def _count_images(books: ShardBooks, reasons: Counter[str]) -> None:
    IMAGES.add(books.predicted, outcome="predicted", reason="")
    for reason, count in reasons.items():
        IMAGES.add(count, outcome="quarantined", reason=reason)
