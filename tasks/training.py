"""Train on the cluster with Ray Train; a checkpoint an epoch goes to the store."""

import logging
import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from fmnist_model.dataset import LabelledImages
from infra.checkpoints import (
    STATE,
    WEIGHTS,
    CheckpointNotFound,
    list_checkpoints,
    read_files,
    read_record,
    write_checkpoint,
)
from infra.datasets import DatasetRecord
from infra.errors import JobError
from infra.object_store import ObjectStore, open_store
from infra.progress import ProgressBoard
from infra.ray_cluster import cluster_cpus, cluster_gpus
from infra.settings import load_settings
from tasks.dataset import load_split
from tasks.workers import choose_workers

_RESTARTS = 2
"""Of the worker group, after workers died; each goes on from the newest checkpoint."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run."""

    run_id: str
    epoch: int
    """Of its last checkpoint."""
    workers: int
    """That finished the run."""
    device: str
    loss: float
    accuracy: float
    """On the training images of the last epoch."""
    images_per_second: float
    """Of the training loop, all workers together."""
    seconds: float
    """In the training loop, checkpoints included, since the last start of the workers."""


@task(name="train network", cache_policy=NO_CACHE)
def train_network(run_id: str, dataset: DatasetRecord, recipe: dict[str, Any], workers: str) -> TrainedRun:
    """Train until the recipe's last epoch, from the run's newest complete checkpoint where it has one.

    Args:
        run_id: names the run's folder in the store.
        dataset: has a split `train`.
        recipe: fields of `fmnist_model.recipe.TrainingRecipe`.
        workers: a number, `MIN:MAX` or `auto`.

    Raises:
        RequestError: the cluster can't hold so many workers.
        JobError: training failed; what was reached is in the run's checkpoints.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    settings = load_settings()
    count = choose_workers(workers, cpus=cluster_cpus(), gpus=cluster_gpus())
    ProgressBoard().post("start workers", run_id=run_id, workers=str(count))
    scratch = settings.state_dir / "ray-train"
    # Under a name that it knows already, Ray Train would restore a state of its own.
    attempt = f"{run_id}-{uuid.uuid4().hex[:6]}"
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "store": settings.store,
            "run_id": run_id,
            "recipe": recipe,
            "data_version": f"{dataset.name}@{dataset.version}",
            # Decoded once, beside the start of the workers, and shared by those of a node.
            "images": [ray.remote(_load_images).options(num_cpus=0).remote(settings.store, dataset)],
        },
        scaling_config=ScalingConfig(
            num_workers=count.fewest if count.fewest == count.most else (count.fewest, count.most),
            use_gpu=cluster_gpus() >= count.fewest,
        ),
        run_config=RunConfig(
            name=attempt, storage_path=str(scratch), failure_config=FailureConfig(max_failures=_RESTARTS)
        ),
    )
    try:
        outcome = trainer.fit().return_value
    except TrainingFailedError as error:
        raise JobError(f"Training run {run_id} failed: {_cause(error)} `--resume {run_id}` goes on with it.") from error
    finally:
        shutil.rmtree(scratch / attempt, ignore_errors=True)
    if not isinstance(outcome, TrainedRun):
        raise JobError(f"Training run {run_id} stopped: {outcome}")
    _write_metrics(open_store(settings.store), outcome)
    return outcome


def _load_images(store: str, dataset: DatasetRecord) -> LabelledImages:
    return load_split(open_store(store), dataset, "train")


def _train_worker(config: dict[str, Any]) -> TrainedRun | str:
    """What each of Ray Train's workers runs: fmnist_model's loop between the store and the progress board.

    Returns:
        The finished run, or why it can't go on where trying again would end the same way.
    """
    import ray
    import torch.distributed
    from ray.train.torch import get_device

    from fmnist_model.recipe import TrainingRecipe
    from fmnist_model.training import TrainingDiverged, TrainingRun

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    store = open_store(config["store"])
    device = get_device()
    group = torch.distributed.group.WORLD if workers > 1 else None
    data: LabelledImages = ray.get(config["images"][0])
    run = _resume_newest(store, config, TrainingRun(TrainingRecipe(**config["recipe"]), data, device, group))
    began = time.perf_counter()
    images = 0
    with _CheckpointWriter(store, config) if rank == 0 else _NoWriter() as checkpoints:
        try:
            for epoch in run.epochs(_progress_poster(config["run_id"]) if rank == 0 else None):
                checkpoints.write(run, {"loss": epoch.loss, "accuracy": epoch.accuracy, "seconds": epoch.seconds})
                images += epoch.images
        except TrainingDiverged as error:  # on every rank at once: they share the loss
            return str(error)
    seconds = time.perf_counter() - began
    if rank != 0:
        return ""
    record = read_record(store, config["run_id"], run.epochs_done)
    return TrainedRun(
        run_id=config["run_id"],
        epoch=record.epoch,
        workers=workers,
        device=str(device),
        loss=record.metrics["loss"],
        accuracy=record.metrics["accuracy"],
        images_per_second=images / seconds,
        seconds=seconds,
    )


def _resume_newest(store: ObjectStore, config: dict[str, Any], run: Any) -> Any:
    from fmnist_model.network import load_weights

    complete = list_checkpoints(store, config["run_id"])
    if not complete:
        return run
    record = read_record(store, config["run_id"], complete[-1])
    files = read_files(store, record)
    return run.load_state(load_weights(files[WEIGHTS], store.uri(record.key)), files[STATE])


def _progress_poster(run_id: str) -> Callable[[Any], None]:
    board = ProgressBoard()
    return lambda progress: board.post("train", run_id=run_id, **asdict(progress))


class _NoWriter:
    """What the ranks other than 0 have in the place of a checkpoint writer."""

    def __enter__(self) -> "_NoWriter":
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def write(self, run: Any, metrics: dict[str, float]) -> None: ...


class _CheckpointWriter:
    """Writes checkpoints in the background, one at a time; a failed one is raised at the next, or at the end."""

    def __init__(self, store: ObjectStore, config: dict[str, Any]) -> None:
        self._store, self._config = store, config
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[Any] | None = None

    def __enter__(self) -> "_CheckpointWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._wait()
        finally:
            self._thread.shutdown()

    def write(self, run: Any, metrics: dict[str, float]) -> None:
        from fmnist_model.network import save_weights

        self._wait()
        self._writing = self._thread.submit(
            write_checkpoint,
            self._store,
            run_id=self._config["run_id"],
            epoch=run.epochs_done,
            files={WEIGHTS: save_weights(run.network), STATE: run.save_state()},
            metrics=metrics,
            parameters=self._config["recipe"],
            data_version=self._config["data_version"],
        )

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def _write_metrics(store: ObjectStore, run: TrainedRun) -> None:
    """Gather what the checkpoints record into `runs/<run id>/metrics.parquet`, a row an epoch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    key = f"runs/{run.run_id}/metrics.parquet"
    rows: dict[int, dict[str, Any]] = {}
    if store.stat(key) is not None:  # of checkpoints that are gone, it is all that is left
        filesystem, path = store.arrow(key)
        rows = {row["epoch"]: row for row in pq.read_table(path, filesystem=filesystem).to_pylist()}
    for epoch in range(1, run.epoch + 1):
        with suppress(CheckpointNotFound):
            rows[epoch] = {"epoch": epoch} | read_record(store, run.run_id, epoch).metrics
    with store.publish(key) as stream:
        pq.write_table(pa.Table.from_pylist([rows[epoch] for epoch in sorted(rows)]), stream)


def _cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    while first.__cause__ is not None:
        first = first.__cause__
    logging.getLogger(__name__).debug("training failed", exc_info=error)
    text = str(first).strip().splitlines()[-1] if str(first).strip() else type(first).__name__
    return text if text.endswith(".") else f"{text}."
