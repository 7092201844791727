"""Classify shards in an actor process."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from uuid import uuid4

import pyarrow as pa

from fmnist_model.images import TRANSFORM_VERSION
from infra.cluster.placement import this_node
from infra.cluster.progress_board import ShardProgress
from infra.cluster.prometheus import StageTimer
from infra.cluster.worker_logs import forward_logs
from infra.importing import gc_paused
from infra.prefetch import prefetched
from infra.storage.keys import part_name, quarantine_folder, table_folder
from infra.storage.model_registry import ModelVersion, read_weights
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.parts import PartFile, PartWriter, open_part
from infra.storage.tables.planning.plan import BatchPlan, ShardInputs
from infra.storage.tables.records import ShardRecord, create_record, read_record
from tasks.classification.decode import decode_batch
from tasks.classification.options import ReadOptions
from tasks.classification.read import ReadImages, read_shard
from tasks.classification.reasons import is_retryable, reason_kind
from tasks.classification.suspects import read_suspect_shard
from tasks.classification.tally import ShardTally
from tasks.prometheus import IMAGES, SHARDS, STAGE_SECONDS, count_failures

if TYPE_CHECKING:
    from fmnist_model.predictions import Predictions, Rejection

_log = logging.getLogger(__name__)


def shard_name(plan: BatchPlan, shard: int) -> str:
    """Name a shard for the progress board."""
    return f"{plan.batch}/{shard}"


class ShardTask(NamedTuple):
    """A shard to classify."""

    shard: int
    number: int = 0
    """Number of its record: 0, or more if parts of earlier records are missing or damaged."""
    is_suspect: bool = False
    """Whether it killed workers, so that its images are read and decoded in child processes."""

    def as_suspect(self) -> Self:
        """Return the task to hand out after the shard killed workers."""
        return self._replace(is_suspect=True)


class ShardClassifier:
    """Load a model once, then classify shards one by one. Reading, classifying and writing overlap."""

    def __init__(self, store_root: str, plan: BatchPlan, model: ModelVersion) -> None:
        with gc_paused():
            import torch

            from fmnist_model.classes import CLASS_NAMES
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
        self._classes = len(CLASS_NAMES)
        self._provenance = {
            "model": model.name,
            "model_version": plan.model_version,
            "run_id": model.run_id,
            "weights_sha256": model.weights_sha256,
            "temperature": str(temperature),
            "options": json.dumps(self._options.to_record()),
        }

    def ready(self) -> str:
        """Return the id of this node once the model is loaded. The actor pool calls this to wait for an actor."""
        return this_node()

    def work(self, task: ShardTask) -> ShardRecord:
        """Classify a shard, unless another attempt has already finished it. Return the record that counts."""
        with count_failures():
            try:
                return self._work(task)
            finally:
                self._logs.await_board()  # the pool kills an actor right after its last shard

    def _work(self, task: ShardTask) -> ShardRecord:
        started = time.perf_counter()
        self._logs.source = f"shard {task.shard}"
        done = read_record(self._store, self._plan, task.shard, task.number)
        if done is not None:
            SHARDS.add(1, outcome="found", error="")
            return done
        inputs = self._inputs.of(task.shard)
        planned = sum(inputs.column("rows").to_pylist())
        stages = StageTimer(STAGE_SECONDS)
        if task.is_suspect:
            _log.warning("The shard killed its workers. Its images are now decoded in processes of their own.")
        images = (read_suspect_shard if task.is_suspect else read_shard)(inputs, self._options)
        with (
            prefetched(stages.measure_each("read", images), 1) as batches,
            prefetched(map(partial(self._classify, stages), batches), 1) as classified,
        ):
            record = self._write(task, planned, classified, started, stages)
        stages.export()
        _log.info("%s images classified in %.2f s.", f"{record.predicted:,}", record.seconds)
        if record.quarantined:
            _log.warning("%s of %s images are in quarantine.", f"{record.quarantined:,}", f"{planned:,}")
        counted = create_record(self._store, self._plan, record)
        if counted is record:
            SHARDS.add(1, outcome="done", error="")
            _count_images(record)
        else:
            SHARDS.add(1, outcome="found", error="")
            _log.info("Another attempt finished this shard first. Its parts count.")
        return counted

    def _classify(self, stages: StageTimer, batch: ReadImages) -> "_ClassifiedImages":
        from fmnist_model.predictions import Rejection

        with stages.measure("decode"):
            decoded = decode_batch(batch.encoded, invert=self._options.invert)
        reasons = {row: batch.reasons.get(row, reason) for row, reason in decoded.rejected}
        with stages.measure("forward"):
            predictions = self._classifier.classify(decoded.pixels)
        rejections = {
            row: Rejection(reason_kind(reason), reason, is_retryable(reason)) for row, reason in reasons.items()
        }
        return _ClassifiedImages(batch, pa.array(decoded.rows), predictions, rejections)

    def _write(
        self,
        task: ShardTask,
        planned: int,
        classified: "Iterator[_ClassifiedImages]",
        started: float,
        stages: StageTimer,
    ) -> ShardRecord:
        """Write the shard's rows and its quarantine as Parquet parts under names that no other attempt uses."""
        tally = ShardTally(self._classes)
        progress = ShardProgress(shard_name(self._plan, task.shard))
        with _ShardParts(self._store, self._plan, task, self._provenance) as parts:
            for batch in classified:
                with stages.measure("write"):
                    parts.write(batch)
                    tally.add_rejections(batch.read.images, batch.rejected)
                    tally.add_predictions(*batch.kept)
                progress.report(parts.rows)
            with stages.measure("write"):
                parts.finish()
        return ShardRecord(
            shard=task.shard,
            number=task.number,
            planned=planned,
            predicted=sum(part.rows for part in parts.predictions),
            quarantined=sum(part.rows for part in parts.quarantine),
            seconds=time.perf_counter() - started,
            parts=parts.predictions,
            quarantine=parts.quarantine,
            reasons=tally.reasons,
            summary=tally.summary,
            least_confident=tally.least_confident,
        )


@dataclass(frozen=True)
class _ClassifiedImages:
    read: ReadImages
    """The batch before decoding, n images."""
    rows: pa.Array
    """Rows of the batch that were classified, `[m]`."""
    predictions: "Predictions"
    """Predictions for these rows, `[m]`."""
    rejected: "dict[int, Rejection]"
    """Rejection by row, for each image that was not classified."""

    @property
    def kept(self) -> "tuple[pa.Array, Predictions, pa.Array]":
        """URIs, predictions and labels of the images that were classified, `[m]` each."""
        if not self.rejected:
            return self.read.images, self.predictions, self.read.labels
        return self.read.images.take(self.rows), self.predictions, self.read.labels.take(self.rows)


class _ShardParts:
    """The parts of one attempt at a shard. A part without rows is not written."""

    def __init__(self, store: ObjectStore, plan: BatchPlan, task: ShardTask, provenance: dict[str, str]) -> None:
        self._store, self._plan, self._provenance = store, plan, provenance
        self._name = part_name(plan.batch, task.shard, uuid4().hex[:12])
        self._open = ExitStack()
        self._rows: PartWriter | None = None
        self._errors: PartWriter | None = None
        self.predictions: list[PartFile] = []
        """The finished parts with predictions."""
        self.quarantine: list[PartFile] = []
        """The finished parts with quarantined images."""

    def __enter__(self) -> Self:
        self._open.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._open.__exit__(*exc_info)

    @property
    def rows(self) -> int:
        """Number of images written."""
        return sum(part.rows for part in (self._rows, self._errors) if part)

    def write(self, batch: _ClassifiedImages) -> None:
        """Append the images of a batch to the part that each belongs to."""
        from fmnist_model.predictions import prediction_batch, prediction_schema, quarantine_batch, quarantine_schema

        versions: Any = {
            "file_version": self._plan.number,
            "model_version": self._plan.model_version,
            "transform": TRANSFORM_VERSION,  # what decodes here, even if an older version planned the batch
        }
        if batch.rejected:
            if self._errors is None:
                self._errors = self._begin(quarantine_folder(self._plan.table), quarantine_schema())
            self._errors.write(quarantine_batch(batch.read.images, batch.rejected, batch.read.labels, **versions))
        if len(batch.rows):
            if self._rows is None:
                self._rows = self._begin(table_folder(self._plan.table), prediction_schema())
            self._rows.write(prediction_batch(*batch.kept, **versions))

    def finish(self) -> None:
        """Complete the parts."""
        self._open.close()
        self.predictions = [self._rows.finished] if self._rows else []
        self.quarantine = [self._errors.finished] if self._errors else []

    def _begin(self, folder: str, schema: pa.Schema) -> PartWriter:
        return self._open.enter_context(
            open_part(self._store, folder, self._name, schema.with_metadata(self._provenance))
        )


def _count_images(record: ShardRecord) -> None:
    IMAGES.add(record.predicted, outcome="predicted", reason="")
    by_kind: Counter[str] = Counter()
    for reason in record.reasons:
        by_kind[reason.kind] += reason.images
    for kind, count in by_kind.items():
        IMAGES.add(count, outcome="quarantined", reason=kind)
