"""Classify a batch's shards on a pool of Ray actors."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

from infra.cluster.actor_pool import map_shards
from infra.cluster.progress_board import ProgressBoard
from infra.cluster.resources import ActorResources
from infra.orchestration.flow_run import task_run_id
from infra.settings import load_settings
from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.planning.plan import BatchPlan, ShardInputs
from infra.storage.tables.records import ShardRecord, damaged_shards, read_records
from tasks.artifacts import run_log
from tasks.classification.actor import ShardClassifier, ShardTask, shard_name
from tasks.classification.plan import PlannedWork
from tasks.prometheus import SHARDS_LEFT
from tasks.step import step

_REFRESH_SECONDS = 1.0
_ROUNDS = 3
"""Times that shards are classified, if their parts are missing or damaged afterwards."""


@dataclass(frozen=True)
class ClassifiedBatch:
    """A batch whose shards are all done."""

    plan: BatchPlan
    records: dict[int, ShardRecord]
    """The record of each shard."""
    seconds: float
    """Seconds from the first ready actor to the end of the last shard."""
    steady_images_per_second: float = 0.0
    """Throughput from the end of the first shard to the end of the last. 0 with fewer than two shards."""


@step("classify shards")
def classify_shards(work: PlannedWork, resources: ActorResources) -> list[ClassifiedBatch]:
    """Classify the shards that have no record yet, or whose parts are missing or damaged.

    Args:
        work: plans of the batches, and the model.
        resources: resources of each actor.

    Raises:
        JobError: the store or a shard failed too often. Finished shards are kept.
    """
    store = open_store(load_settings().store)
    return [_classify_batch(store, plan, work.model, resources) for plan in work.plans]


def _classify_batch(
    store: ObjectStore, plan: BatchPlan, model: ModelVersion, resources: ActorResources
) -> ClassifiedBatch:
    records = read_records(store, plan)
    began = time.perf_counter()
    ends: list[_End] = []
    for _ in range(_ROUNDS):
        tasks = unfinished_shards(store, plan, records)
        if not tasks:
            break
        noun = "shard" if len(tasks) == 1 else "shards"
        ProgressBoard().post("start classifiers", f"Starting the classifiers for {len(tasks):,} {noun}")
        with map_shards(
            ShardClassifier,
            (store.root, plan, model),
            tasks,
            resources,
            what=f"Classification into {plan.table}",
            describe=partial(describe_shard, store, plan),
            as_suspect=ShardTask.as_suspect,
        ) as results:
            began = began if ends else time.perf_counter()
            with BatchProgress(plan, list(records.values())) as progress:
                for record in results:
                    records[record.shard] = record
                    ends.append(_End(record.planned, time.perf_counter()))
                    progress.add(record)
    return ClassifiedBatch(
        plan=plan, records=records, seconds=time.perf_counter() - began, steady_images_per_second=_rate(ends)
    )


class _End(NamedTuple):
    """The end of a shard."""

    images: int
    seconds: float


def describe_shard(store: ObjectStore, plan: BatchPlan, task: ShardTask) -> str:
    """Name a shard, its batch and its first input."""
    first = ShardInputs(store, plan).of(task.shard).column("uri")[0]
    return f"shard {task.shard} of batch {plan.batch}, whose first input is {first}"


def unfinished_shards(store: ObjectStore, plan: BatchPlan, records: dict[int, ShardRecord]) -> list[ShardTask]:
    """Return the shards to classify. Remove those from `records` whose parts are missing or damaged."""
    bad = damaged_shards(store, plan, records.values())
    for shard, key in bad.items():
        run_log().warning("Shard %d is classified again: %s is missing or damaged.", shard, store.uri(key))
    successors = {shard: records.pop(shard).number + 1 for shard in bad}
    return [ShardTask(shard, successors.get(shard, 0)) for shard in range(plan.shards) if shard not in records]


def _rate(ends: list[_End]) -> float:
    if len(ends) < 2:
        return 0.0
    return sum(end.images for end in ends[1:]) / (ends[-1].seconds - ends[0].seconds)


class BatchProgress:
    """Post the progress of a batch after each shard, and once a second from what the actors report."""

    def __init__(self, plan: BatchPlan, earlier: Sequence[ShardRecord]) -> None:
        self._plan, self._board, self._task_run = plan, ProgressBoard(), task_run_id()
        self._began = time.perf_counter()
        self._before = self._images = sum(record.planned for record in earlier)
        self._quarantined = sum(record.quarantined for record in earlier)
        self._done = {shard_name(plan, record.shard) for record in earlier}
        self._parts: dict[str, int] = {}
        self._shown = 0, 0
        self._posting = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()
        SHARDS_LEFT.set(0, table=self._plan.table)

    def add(self, record: ShardRecord) -> None:
        """Count a finished shard."""
        name = shard_name(self._plan, record.shard)
        self._board.forget(name)  # the board holds the shards in progress, not a million finished ones
        with self._posting:
            self._done.add(name)
            self._images += record.planned
            self._quarantined += record.quarantined
            self._post()

    def _follow(self) -> None:
        SHARDS_LEFT.set(self._plan.shards - len(self._done), table=self._plan.table)
        while not self._ended.wait(_REFRESH_SECONDS):
            with suppress(Exception):  # progress must not fail a run
                SHARDS_LEFT.set(self._plan.shards - len(self._done), table=self._plan.table)
                parts = self._board.shards()
                with self._posting:
                    self._parts = parts
                    self._post()

    def _post(self) -> None:
        plan, count = self._plan, len(self._done)
        mine = f"{plan.batch}/"
        running = (images for part, images in self._parts.items() if part.startswith(mine) and part not in self._done)
        images = self._images + sum(running)
        if (images, count) == self._shown:
            return
        self._shown = images, count
        rate = (images - self._before) / (time.perf_counter() - self._began)
        left = (plan.planned - images) / max(rate, 1)
        text = (
            f"Classifying into {plan.table}: {count:,}/{plan.shards:,} shards, {images:,}/{plan.planned:,} images, "
            f"{self._quarantined:,} quarantined, {rate:,.0f} images/s, {left:.0f} s left"
        )
        figures = {"task_run_id": self._task_run, "images": images, "shards_done": count}
        self._board.post("classify", text, images / max(plan.planned, 1), **figures)
