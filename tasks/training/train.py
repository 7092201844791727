"""Train on the cluster with Ray Train. Every epoch writes a checkpoint to the store."""

import logging
import shutil
import uuid
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from fmnist_model.errors import InvalidDataset
from infra.cluster.progress_board import ProgressBoard
from infra.cluster.size import cluster_limit, cluster_size
from infra.cluster.waiting import call_interruptibly
from infra.errors import JobError, JobStopped
from infra.orchestration.flow_run import task_run_id
from infra.settings import Settings, load_settings
from infra.storage.datasets import DatasetRecord
from tasks.step import step
from tasks.training.run import RunToTrain, TrainedRun, TrainingJob
from tasks.training.worker import load_images, train_worker
from tasks.training.worker_count import WorkerRange, choose_workers

_log = logging.getLogger(__name__)

_MOST_RESTARTS = 2
"""Restarts of the worker group after workers died. Each resumes from the newest checkpoint."""
_RESIZE_SECONDS = 30.0
"""Time between two looks for room for more workers. Growing costs about 7 s and the unfinished epoch."""


@step("train network")
def train_network(run: RunToTrain, dataset: DatasetRecord, workers: str) -> TrainedRun:
    """Train until the recipe's last epoch, from the run's newest complete checkpoint if it has one.

    Args:
        run: run that the checkpoints belong to.
        dataset: dataset with a split `train`.
        workers: a number, `MIN:MAX` or `auto`.

    Raises:
        RequestError: the cluster can't hold that many workers.
        InvalidDataset: the images can't be trained on.
        JobError: training failed. The run's checkpoints hold what it reached.
    """
    settings = load_settings()
    size, limit = cluster_size(), cluster_limit()
    count = choose_workers(workers, cpus=limit.cpus, gpus=limit.gpus, gpus_by_now=size.gpus)
    ProgressBoard().post("start workers", f"Starting {count} training workers", run_id=run.id)
    job = _worker_job(run, dataset, settings)

    from ray.exceptions import RayError  # this and Ray Train take seconds to import
    from ray.train import TrainingFailedError

    # Ray Train would restore its own state under a name that it knows.
    name = f"{run.id}-{uuid.uuid4().hex[:6]}"
    scratch = settings.state_dir / "ray-train"
    trainer = _trainer(job, count, name, scratch, settings, use_gpu=limit.gpus >= count.fewest)
    try:
        outcome = call_interruptibly(trainer.fit).return_value
    except (TrainingFailedError, RayError) as error:
        raise JobError(f"Training run {run.id} failed: {_cause(error)} Resume it with `--resume {run.id}`.") from error
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)
    if isinstance(outcome, InvalidDataset):
        raise outcome
    if not isinstance(outcome, TrainedRun):
        raise JobStopped(f"Training run {run.id} stopped: {outcome}")
    for warning in outcome.warnings:
        get_run_logger().warning(warning)
    return outcome


def _worker_job(run: RunToTrain, dataset: DatasetRecord, settings: Settings) -> TrainingJob:
    import ray

    # Decoded once while the workers start, and shared by the workers of a node.
    held_out = run.recipe.validation_images
    images = ray.remote(load_images).options(num_cpus=0).remote(settings.store, dataset, held_out)
    return TrainingJob(
        store=settings.store,
        run=run,
        data_version=f"{dataset.name}@{dataset.version}",
        images=images,
        task_run_id=task_run_id(),
    )


def _trainer(
    job: TrainingJob, count: WorkerRange, name: str, scratch: Path, settings: Settings, *, use_gpu: bool
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from infra.upstream.ray_train_helper_actors import LeanTorchTrainer

    return LeanTorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=count.fewest if count.fewest == count.most else (count.fewest, count.most),
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=name, storage_path=str(scratch), failure_config=FailureConfig(max_failures=_MOST_RESTARTS)
        ),
        ends_with_run=settings.ray_address is None,
    )


def _cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    while first.__cause__ is not None:
        first = first.__cause__
    _log.debug("training failed", exc_info=error)
    text = str(first).strip().splitlines()[-1] if str(first).strip() else type(first).__name__
    return text if text.endswith(".") else f"{text}."
