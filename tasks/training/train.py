"""Train on the cluster with Ray Train; a checkpoint an epoch goes to the store."""

import logging
import shutil
import uuid

from prefect import get_run_logger

from fmnist_model.errors import InvalidDataset
from infra.cluster.connection import cluster_limit, cluster_size
from infra.cluster.progress_board import ProgressBoard
from infra.errors import JobError, JobStopped
from infra.orchestration.flow_run import task_run_id
from infra.settings import load_settings
from infra.storage.datasets import DatasetRecord
from infra.upstream.ray_monitoring_processes import is_alone
from tasks.step import step
from tasks.training.trained_run import RunToTrain, TrainedRun
from tasks.training.worker import load_images, train_worker
from tasks.training.worker_count import choose_workers

_log = logging.getLogger(__name__)

_RESTARTS = 2
"""Of the worker group, after workers died; each goes on from the newest checkpoint."""
_RESIZE_SECONDS = 30.0
"""How often a range of workers looks whether there is room for more; growing costs some 7 s, and the epoch begun."""


@step("train network")
def train_network(run: RunToTrain, dataset: DatasetRecord, workers: str) -> TrainedRun:
    """Train until the recipe's last epoch, from the run's newest complete checkpoint where it has one.

    Args:
        run: names the run's folder in the store.
        dataset: has a split `train`.
        workers: a number, `MIN:MAX` or `auto`.

    Raises:
        RequestError: the cluster can't hold so many workers.
        InvalidDataset: the images can't be trained on.
        JobError: training failed; what was reached is in the run's checkpoints.
    """
    import ray

    settings = load_settings()
    size, limit = cluster_size(), cluster_limit()
    count = choose_workers(workers, cpus=limit.cpus, gpus=limit.gpus, gpus_by_now=size.gpus)
    ProgressBoard().post("start workers", f"Starting {count} training workers", run_id=run.id)
    # Decoded once, while the workers start, and shared by those of a node.
    held_out = run.recipe["validation_images"]
    images = ray.remote(load_images).options(num_cpus=0).remote(settings.store, dataset, held_out)

    from ray.exceptions import RayError  # these take seconds to import
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

    from infra.cluster.trainer import Trainer

    scratch = settings.state_dir / "ray-train"
    # Under a name that it knows already, Ray Train would restore a state of its own.
    attempt = f"{run.id}-{uuid.uuid4().hex[:6]}"
    trainer = Trainer(
        train_worker,
        train_loop_config={
            "store": settings.store,
            "run": run,
            "task_run_id": task_run_id(),
            "data_version": f"{dataset.name}@{dataset.version}",
            "images": [images],  # in a list, or Ray would wait for them, and hand them on by value
        },
        scaling_config=ScalingConfig(
            num_workers=count.fewest if count.fewest == count.most else (count.fewest, count.most),
            use_gpu=limit.gpus >= count.fewest,
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=attempt, storage_path=str(scratch), failure_config=FailureConfig(max_failures=_RESTARTS)
        ),
        has_room=size == limit,
        ends_with_run=is_alone(),
    )
    try:
        outcome = trainer.fit().return_value
    except (TrainingFailedError, RayError) as error:
        raise JobError(f"Training run {run.id} failed: {_cause(error)} `--resume {run.id}` goes on with it.") from error
    finally:
        shutil.rmtree(scratch / attempt, ignore_errors=True)
    if isinstance(outcome, InvalidDataset):
        raise outcome
    if not isinstance(outcome, TrainedRun):
        raise JobStopped(f"Training run {run.id} stopped: {outcome}")
    for warning in outcome.warnings:
        get_run_logger().warning(warning)
    return outcome


def _cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    while first.__cause__ is not None:
        first = first.__cause__
    _log.debug("training failed", exc_info=error)
    text = str(first).strip().splitlines()[-1] if str(first).strip() else type(first).__name__
    return text if text.endswith(".") else f"{text}."
