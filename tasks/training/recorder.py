"""Record a training run: progress, logs, metrics and checkpoints."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from infra.cluster.progress_board import ProgressBoard
from infra.storage.checkpoints import STATE, WEIGHTS, read_record, write_checkpoint
from infra.storage.object_store import ObjectStore
from tasks.prometheus import (
    CHECKPOINT_SECONDS,
    CHECKPOINTS,
    TRAINING_ACCURACY,
    TRAINING_FAILURES,
    TRAINING_RESUMES,
    StepCounter,
)
from tasks.training.run import RunToTrain, TrainedRun, TrainingJob

if TYPE_CHECKING:
    from fmnist_model.training.loop import TrainingRun
    from fmnist_model.training.progress import EpochMetrics, StepProgress
    from fmnist_model.training.snapshot import Snapshot

_log = logging.getLogger(__name__)

_METRICS = ("loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate", "seconds")
"""Fields of `EpochMetrics` to record in a checkpoint."""


class RunRecorder:
    """Record what rank 0 sees of a training run: one recorder per run, around the training loop.

    Leaving the block waits until the last checkpoint is written.

    Args:
        store: the store for checkpoints.
        job: arguments of the worker.
        run: the run, with the epochs that were done before it was resumed.
        workers: number of workers.
        device: device of rank 0.
    """

    def __init__(self, store: ObjectStore, job: TrainingJob, run: "TrainingRun", *, workers: int, device: str) -> None:
        self._store, self._job, self._run = store, job, run
        self._workers, self._device = workers, device
        self._board = ProgressBoard()
        self._steps = StepCounter(run.epochs_done * run.steps_per_epoch)
        self._checkpoints = CheckpointWriter(store, job.run, job.data_version)
        self._images = 0
        self._seconds = 0.0

    def __enter__(self) -> Self:
        if self._run.epochs_done:
            TRAINING_RESUMES.add(1)
        self._checkpoints.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._checkpoints.__exit__(*exc_info)
        self._seconds = time.perf_counter() - self._started

    def on_step(self, progress: "StepProgress") -> None:
        """Count the steps, and show the progress on the board."""
        self._steps.count(progress)
        workers = f"{self._workers} worker{'s' * (self._workers > 1)}"
        text = (
            f"Training: epoch {progress.epoch}/{progress.epochs}, step {progress.step:,}/{progress.steps:,}, "
            f"loss {progress.loss:.3f}, accuracy {progress.accuracy:.1%}, {progress.images_per_second:,.0f} images/s, "
            f"{workers}, {_seconds_left(progress):.0f} s left"
        )
        run = {"run_id": self._job.run.id, "task_run_id": self._job.task_run_id, "workers": self._workers}
        self._board.post("train", text, progress.step / progress.steps, **run | asdict(progress))

    def on_epoch(self, epoch: "EpochMetrics") -> None:
        """Log an epoch, export its validation accuracy, and start to write its checkpoint."""
        self._images += epoch.images
        validated = ""
        if epoch.validation_accuracy is not None:
            validated = f", validation accuracy {epoch.validation_accuracy:.2%}"
            TRAINING_ACCURACY.set(epoch.validation_accuracy)
        _log.info(
            f"Epoch {epoch.epoch} of {self._run.recipe.epochs}: loss {epoch.loss:.4f}{validated}, "
            f"{epoch.images / epoch.seconds:,.0f} images/s."
        )
        self._checkpoints.write(self._run, epoch)

    def on_failure(self, error: Exception) -> None:
        """Count a failure that a retry would not fix."""
        TRAINING_FAILURES.add(1, error=type(error).__name__)

    def finish(self, warnings: list[str]) -> TrainedRun:
        """Describe the finished run, after the block."""
        record = read_record(self._store, self._job.run.id, self._run.epochs_done)
        return TrainedRun(
            run_id=record.run_id,
            epoch=record.epoch,
            workers=self._workers,
            device=self._device,
            loss=record.metrics["loss"],
            accuracy=record.metrics["accuracy"],
            validation_accuracy=record.metrics.get("validation_accuracy"),
            images_per_second=self._images / self._seconds,
            seconds=self._seconds,
            warnings=warnings,
        )


def _seconds_left(progress: "StepProgress") -> float:
    images_left = (progress.steps - progress.step) * progress.global_batch_size
    return images_left / max(progress.images_per_second, 1)


class CheckpointWriter:
    """Write checkpoints in a background thread, one at a time, while training continues.

    If writing a checkpoint fails, the next `write` or the end of the block raises the error.

    Args:
        store: the store for checkpoints.
        run: the run to record.
        data_version: name and version of the dataset.
    """

    def __init__(self, store: ObjectStore, run: RunToTrain, data_version: str) -> None:
        self._store, self._run, self._data_version = store, run, data_version
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._snapshot: Snapshot | None = None
        """The last snapshot. The next one reuses its memory."""

    def __enter__(self) -> Self:
        self._store.check_conditional_writes()  # otherwise the first write does this check while training runs
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def write(self, run: "TrainingRun", epoch: "EpochMetrics") -> None:
        """Copy the state of the run, and start to write it as the checkpoint of an epoch."""
        self.wait()
        self._snapshot = run.snapshot(into=self._snapshot)
        self._writing = self._thread.submit(self._write, self._snapshot, epoch)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            Exception: whatever made writing it fail.
        """
        if self._writing is not None:
            self._writing.result()

    def _write(self, snapshot: "Snapshot", epoch: "EpochMetrics") -> None:
        started = time.perf_counter()
        metrics: dict[str, Any] = {name: getattr(epoch, name) for name in _METRICS}
        write_checkpoint(
            self._store,
            run_id=self._run.id,
            epoch=epoch.epoch,
            files={WEIGHTS: snapshot.weights(), STATE: snapshot.state()},
            metrics={name: value for name, value in metrics.items() if value is not None},
            steps={"loss": epoch.step_losses.tolist(), "learning_rate": epoch.step_learning_rates.tolist()},
            parameters=self._run.recipe.to_record(),
            data_version=self._data_version,
        )
        CHECKPOINTS.add(1)
        CHECKPOINT_SECONDS.add(time.perf_counter() - started)
