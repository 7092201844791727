"""What each of Ray Train's workers does: the model's loop, between the store and the progress board.

Nothing here imports Prefect, which each worker's process would have to import before it trains.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import Any

from fmnist_model.dataset import LabelledImages, check_classes, hold_out
from fmnist_model.errors import InvalidDataset
from infra.cluster.progress_board import ProgressBoard
from infra.cluster.worker_logs import forward_logs
from infra.cpu_contention import CpuContention, yield_cpu
from infra.storage.checkpoints import (
    STATE,
    WEIGHTS,
    CheckpointCorrupt,
    CheckpointNotFound,
    list_checkpoints,
    read_files,
    read_record,
    remove_checkpoint,
    write_checkpoint,
)
from infra.storage.datasets import DatasetRecord
from infra.storage.model_registry import ModelRegistry, read_weights
from infra.storage.object_store import ObjectStore, open_store
from tasks.prometheus import (
    CHECKPOINT_SECONDS,
    CHECKPOINTS,
    TRAINING_ACCURACY,
    TRAINING_FAILURES,
    TRAINING_RESUMES,
    TrainingMetrics,
)
from tasks.training.splits import load_split
from tasks.training.trained_run import RunToTrain, TrainedRun

_log = logging.getLogger(__name__)

_METRICS = ("loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate", "seconds")
"""Of an epoch, recorded in its checkpoint."""


def load_images(store: str, dataset: DatasetRecord, held_out: int) -> tuple[LabelledImages, LabelledImages]:
    """What is trained on, and what validates."""
    data = load_split(open_store(store), dataset, "train")
    check_classes(data, f"The split train of {dataset.name}")
    parts = hold_out(data, held_out)
    load_split(open_store(store), dataset, "test")  # or what is wrong with it would be told when all is trained
    return parts


def train_worker(config: dict[str, Any]) -> TrainedRun | Exception | None:
    """What each of Ray Train's workers runs: fmnist_model's loop between the store and the progress board.

    Returns:
        The finished run, from rank 0; or why it can't go on, where trying again would end the same way.
    """
    import ray
    import torch.distributed
    from ray.train.torch import get_device

    from fmnist_model.training.loop import TrainingDiverged, TrainingRun
    from fmnist_model.training.recipe import TrainingRecipe

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    forward_logs(f"rank {rank}")
    store, to_train = open_store(config["store"]), config["run"]
    device = get_device()
    try:
        data, validation = ray.get(config["images"][0])
    except InvalidDataset as error:
        return InvalidDataset(str(error).splitlines()[-1].removeprefix(f"{InvalidDataset.__module__}.InvalidDataset: "))
    newest, warnings = _newest_whole(store, to_train.id, rank=rank, workers=workers)
    try:
        initial = _initial_network(store, to_train) if newest is None else None
    except (CheckpointCorrupt, CheckpointNotFound) as error:
        return error
    run = TrainingRun(
        TrainingRecipe(**to_train.recipe),
        data,
        device,
        torch.distributed.group.WORLD if workers > 1 else None,
        validation=validation,
        initial=initial,
    )
    if newest is not None:
        _bring_back(store, to_train.id, newest, run)
        if rank == 0:
            TRAINING_RESUMES.add(1)
    share = run.recipe.global_batch_size // workers
    _log.info("Rank %d of %d trains on %s, about %d images a step.", rank, workers, device, share)
    images = 0
    with _CheckpointWriter(store, config) if rank == 0 else nullcontext() as checkpoints:
        began = time.perf_counter()
        try:
            poster = _progress_poster(run, workers, to_train.id, config["task_run_id"]) if rank == 0 else None
            for epoch in run.epochs(poster):
                images += epoch.images
                if rank == 0:
                    _log.info(_told(epoch, run.recipe.epochs))
                    if epoch.validation_accuracy is not None:
                        TRAINING_ACCURACY.set(epoch.validation_accuracy)
                if checkpoints is not None:
                    checkpoints.write(run, epoch)
        except TrainingDiverged as error:  # on every rank at once: they share the loss
            if rank == 0:
                TRAINING_FAILURES.add(1, error=type(error).__name__)
            return error
    seconds = time.perf_counter() - began
    if rank != 0:
        return None
    record = read_record(store, to_train.id, run.epochs_done)
    return TrainedRun(
        run_id=to_train.id,
        epoch=record.epoch,
        workers=workers,
        device=str(device),
        loss=record.metrics["loss"],
        accuracy=record.metrics["accuracy"],
        validation_accuracy=record.metrics.get("validation_accuracy"),
        images_per_second=images / seconds,
        seconds=seconds,
        warnings=warnings,
    )


def _told(epoch: Any, epochs: int) -> str:
    validated = "" if epoch.validation_accuracy is None else f", validation accuracy {epoch.validation_accuracy:.2%}"
    speed = epoch.images / epoch.seconds
    return f"Epoch {epoch.epoch} of {epochs}: loss {epoch.loss:.4f}{validated}, {speed:,.0f} images/s."


def _initial_network(store: ObjectStore, run: RunToTrain) -> Any:
    from fmnist_model.network import load_weights

    named: str = run.recipe["initial_weights"]
    if not named:
        return None
    if run.initial is None:
        raise CheckpointNotFound(
            f"It is to begin with weights whose SHA-256 is {named[:12]}…, which no version of the model has any more."
        )
    return load_weights(*read_weights(store, run.initial))


def _newest_whole(store: ObjectStore, run_id: str, *, rank: int, workers: int) -> tuple[int | None, list[str]]:
    """Epoch of the newest checkpoint that is as it was written, if there is any; and which ones were not."""
    import torch.distributed

    found: list[tuple[int | None, list[str]]]
    found = [_discard_damaged(store, run_id) if rank == 0 else (None, [])]
    if workers > 1:  # rank 0 decides, so that none goes on from another epoch
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def _bring_back(store: ObjectStore, run_id: str, epoch: int, run: Any) -> None:
    from fmnist_model.network import load_weights

    record = read_record(store, run_id, epoch)
    files = read_files(store, record)
    run.load_state(load_weights(files[WEIGHTS], store.uri(record.key)), files[STATE])


def _discard_damaged(store: ObjectStore, run_id: str) -> tuple[int | None, list[str]]:
    """The newest checkpoint that is as it was written, once newer ones are removed; their epochs are trained anew.

    One whose weights are whole, and a version's, stays: only what it takes to go on from it is lost.
    """
    warnings = []
    for epoch in reversed(list_checkpoints(store, run_id)):
        try:
            read_files(store, read_record(store, run_id, epoch))
        except CheckpointCorrupt as error:
            needed = _stands_for_a_version(store, run_id, epoch)
            fate = "passed over" if needed else "removed"
            warnings.append(f"The checkpoint of epoch {epoch} is {fate} and its epoch trained anew: {error}")
            _log.warning(warnings[-1])
            if not needed:
                remove_checkpoint(store, run_id, epoch)
        else:
            return epoch, warnings
    return None, warnings


def _stands_for_a_version(store: ObjectStore, run_id: str, epoch: int) -> bool:
    """Whether the checkpoint's weights are whole, and those that a version was registered with."""
    for version in ModelRegistry(store).newest_first():
        if (version.run_id, version.epoch) == (run_id, epoch):
            with suppress(CheckpointCorrupt, CheckpointNotFound):
                read_weights(store, version)
                return True
    return False


def _progress_poster(run: Any, workers: int, run_id: str, task_run_id: str | None) -> Callable[[Any], None]:
    board = ProgressBoard()
    metrics = TrainingMetrics(run.epochs_done * run.steps_per_epoch)

    def post(progress: Any) -> None:
        metrics.at(progress)
        left = (progress.steps - progress.step) * progress.global_batch_size / max(progress.images_per_second, 1)
        text = (
            f"Training: epoch {progress.epoch}/{progress.epochs}, step {progress.step:,}/{progress.steps:,}, "
            f"loss {progress.loss:.3f}, accuracy {progress.accuracy:.1%}, "
            f"{progress.images_per_second:,.0f} images/s, {workers} worker{'s' * (workers > 1)}, {left:.0f} s left"
        )
        figures = {"run_id": run_id, "task_run_id": task_run_id, "workers": workers} | asdict(progress)
        board.post("train", text, progress.step / progress.steps, **figures)

    return post


_CALM = 0.25
"""Share of its time for which a rank may have waited for a CPU since the last checkpoint, if the next one is to be sent
by a thread that yields. It is 0.07 with as many ranks as CPUs, and 0.51 beside as many other busy programs."""


class _CheckpointWriter:
    """Writes checkpoints in the background, one at a time; a failed one is raised at the next, or at the end.

    Where CPUs are not wanted by other programs, by a thread that has one when the rank waits for another. Elsewhere by
    one like any other: training would wait for it, for epochs of four times their length.
    """

    def __init__(self, store: ObjectStore, config: dict[str, Any]) -> None:
        self._store, self._config = store, config
        self._contention = CpuContention()
        self._plain, self._yielding = ThreadPoolExecutor(1), ThreadPoolExecutor(1, initializer=yield_cpu)
        self._writing: Future[Any] | None = None
        self._snapshot: Any = None
        """The one that was written last; the next is taken into its memory."""

    def __enter__(self) -> "_CheckpointWriter":
        self._store.check_conditional_writes()  # which the first write would do, in the midst of training
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._wait()
        finally:
            self._plain.shutdown()
            self._yielding.shutdown()

    def write(self, run: Any, epoch: Any) -> None:
        self._wait()
        self._snapshot = run.snapshot(into=self._snapshot)
        thread = self._yielding if self._contention.share_waited() < _CALM else self._plain
        self._writing = thread.submit(
            _write_checkpoint,
            self._store,
            self._snapshot,
            run_id=self._config["run"].id,
            epoch=epoch.epoch,
            metrics={name: value for name in _METRICS if (value := getattr(epoch, name)) is not None},
            steps={"loss": epoch.step_losses.tolist(), "learning_rate": epoch.step_learning_rates.tolist()},
            parameters=self._config["run"].recipe,
            data_version=self._config["data_version"],
        )

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def _write_checkpoint(store: ObjectStore, snapshot: Any, **checkpoint: Any) -> None:
    began = time.perf_counter()
    write_checkpoint(store, files={WEIGHTS: snapshot.weights(), STATE: snapshot.state()}, **checkpoint)
    CHECKPOINTS.add(1)
    CHECKPOINT_SECONDS.add(time.perf_counter() - began)
