"""Classify a batch's shards on a pool of Ray actors."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.actor_pool import map_shards
from infra.actor_resources import ActorResources
from infra.flow_run import task_run_id
from infra.model_registry import ModelVersion
from infra.object_store import ObjectStore, open_store
from infra.prediction_table import (
    BatchPlan,
    ShardBooks,
    existing_parts,
    read_books,
)
from infra.progress import ProgressBoard
from infra.settings import load_settings
from tasks.planning import PlannedWork
from tasks.shard_classifier import ShardClassifier
from tasks.step import step


@dataclass(frozen=True)
class ClassifiedBatch:
    """A batch whose shards are all done."""

    plan: BatchPlan
    books: list[ShardBooks]
    seconds: float
    """From the moment the first actor was ready to the end of the last shard."""
    steady_images_per_second: float = 0.0
    """From the end of the first shard to that of the last; 0 where there were fewer than two."""


@step("classify shards")
def classify_shards(work: PlannedWork, resources: ActorResources) -> list[ClassifiedBatch]:
    """Classify the shards that have no part yet.

    Raises:
        JobError: the store or a shard fails again and again; what is done is kept.
    """
    store = open_store(load_settings().store)
    return [_classify_batch(store, plan, work.model, resources) for plan in work.plans]


def _classify_batch(
    store: ObjectStore, plan: BatchPlan, model: ModelVersion, resources: ActorResources
) -> ClassifiedBatch:
    books = [found for shard in existing_parts(store, plan) if (found := read_books(store, plan, shard))]
    missing = sorted(set(range(plan.shards)) - {entry.shard for entry in books})
    began = time.perf_counter()
    ends: list[float] = []
    if missing:
        ProgressBoard().post("start classifiers", f"Starting the classifiers of {len(missing):,} shards")
        what = f"Classification into {plan.table}"
        with map_shards(ShardClassifier, (store.root, plan, model), missing, resources, what=what) as results:
            began = time.perf_counter()
            for entry in _watched(results, plan, books):
                books.append(entry)
                ends.append(time.perf_counter())
    return ClassifiedBatch(
        plan=plan,
        books=sorted(books, key=lambda entry: entry.shard),
        seconds=time.perf_counter() - began,
        steady_images_per_second=_rate(books[-len(ends) :], ends),
    )


def _rate(books: list[ShardBooks], ends: list[float]) -> float:
    if len(ends) < 2:
        return 0.0
    return sum(entry.planned for entry in books[1:]) / (ends[-1] - ends[0])


def _watched(results: Iterator[ShardBooks], plan: BatchPlan, earlier: Sequence[ShardBooks]) -> Iterator[ShardBooks]:
    """Pass books on, and post how far the batch is after each."""
    board, task_run = ProgressBoard(), task_run_id()
    began = time.perf_counter()
    before = images = sum(books.planned for books in earlier)
    quarantined = sum(books.quarantined for books in earlier)
    for count, entry in enumerate(results, len(earlier) + 1):
        images += entry.planned
        quarantined += entry.quarantined
        rate = (images - before) / (time.perf_counter() - began)
        text = (
            f"Classifying into {plan.table}: {count:,}/{plan.shards:,} shards, {images:,}/{plan.planned:,} images, "
            f"{quarantined:,} quarantined, {rate:,.0f} images/s, {(plan.planned - images) / max(rate, 1):.0f} s left"
        )
        figures = {"task_run_id": task_run, "images": images, "shards_done": count}
        board.post("classify", text, images / plan.planned, **figures)
        yield entry
