"""Classify and commit batches in this process, without Ray, with the project's own planning, actors and commits."""

import tempfile
from pathlib import Path

import torch

from fmnist_model.network import NeuralNetwork, save_weights
from infra.storage.checkpoints import write_checkpoint
from infra.storage.model_registry import ModelRegistry, ModelVersion
from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.planning.plan import BatchPlan
from infra.storage.tables.records import ShardRecord, read_records
from tasks.classification.actor import ShardClassifier
from tasks.classification.classify import ClassifiedBatch, unfinished_shards
from tasks.classification.commit import commit_classified
from tasks.classification.options import ReadOptions
from tasks.classification.plan import PlannedWork, plan_inputs


def register_model(store: ObjectStore, seed: int = 0) -> ModelVersion:
    """Register a network with random weights as the next version."""
    torch.manual_seed(seed)
    run_id = f"run-{seed}"
    files = {"model.safetensors": save_weights(NeuralNetwork())}
    checkpoint = write_checkpoint(
        store, run_id=run_id, epoch=1, files=files, metrics={}, parameters={}, data_version="tests"
    )
    return ModelRegistry(store).register(
        run_id=run_id,
        epoch=1,
        weights_sha256=checkpoint.files[0].sha256,
        metrics={},
        parameters={},
        data_version="tests",
    )


def plan_here(store: ObjectStore, inputs: Path, table: str, model: ModelVersion) -> PlannedWork:
    """Plan a batch of the images in a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        return plan_inputs(store, [str(inputs)], table=table, model=model, options=ReadOptions(), scratch=Path(scratch))


def classify_here(store: ObjectStore, plan: BatchPlan, model: ModelVersion) -> ClassifiedBatch:
    """Classify the shards of a batch that no run has finished."""
    records: dict[int, ShardRecord] = read_records(store, plan)
    tasks = unfinished_shards(store, plan, records)
    if tasks:
        actor = ShardClassifier(store.root, plan, model)
        records |= {task.shard: actor.work(task) for task in tasks}
    return ClassifiedBatch(plan=plan, records=records, seconds=1.0)


def commit_here(store: ObjectStore, batch: ClassifiedBatch, model: ModelVersion) -> BatchBooks:
    """Commit a batch as `fmnist classify` does."""
    return commit_classified(store, model, batch)
