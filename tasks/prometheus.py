"""Define the Prometheus metrics that workers export. See docs/operations.md for how to read them.

Ray's own agents export GPU, memory and CPU usage.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from infra.cluster.prometheus import Counter, Gauge

if TYPE_CHECKING:
    from fmnist_model.training.progress import StepProgress

IMAGES = Counter(
    "fmnist_images_total",
    "Images in finished shards, by outcome (predicted or quarantined) and reason.",
    ("outcome", "reason"),
)
SHARDS = Counter(
    "fmnist_shards_total", "Shards: done, found already done, or failed with an error.", ("outcome", "error")
)
SHARDS_LEFT = Gauge("fmnist_shards_left", "Unfinished shards of the batch in progress.", ("table",))
STAGE_SECONDS = Counter(
    "fmnist_stage_seconds_total",
    "Seconds spent in each stage of classification: read, decode, forward, write. Stages overlap.",
    ("stage",),
)
TRAINING_IMAGES = Counter("fmnist_training_images_total", "Images trained on by all workers together.")
TRAINING_STEPS = Counter("fmnist_training_steps_total", "Optimizer steps.")
TRAINING_SECONDS = Counter(
    "fmnist_training_seconds_total", "Seconds in the training loop, including validation and waiting for checkpoints."
)
TRAINING_LOSS = Gauge("fmnist_training_loss", "Training loss in the current epoch so far.")
TRAINING_ACCURACY = Gauge("fmnist_training_validation_accuracy", "Share of the validation images classified correctly.")
TRAINING_FAILURES = Counter(
    "fmnist_training_failures_total", "Training runs that failed for good, by error.", ("error",)
)
CHECKPOINTS = Counter("fmnist_checkpoints_total", "Checkpoints written.")
CHECKPOINT_SECONDS = Counter("fmnist_checkpoint_seconds_total", "Seconds spent on writing checkpoints.")
TRAINING_RESUMES = Counter(
    "fmnist_training_resumes_total",
    "Times that training continued from a checkpoint: after a worker died, or on resume.",
)


@contextmanager
def count_failures() -> Iterator[None]:
    """Count a shard as failed if the block raises."""
    try:
        yield
    except Exception as error:
        SHARDS.add(1, outcome="failed", error=type(error).__name__)
        raise


class StepCounter:
    """Count the steps, images and seconds of a training run from the progress of rank 0.

    Args:
        steps_done: steps of the run that were done before it was resumed.
    """

    def __init__(self, steps_done: int) -> None:
        self._step, self._counted_at = steps_done, time.perf_counter()

    def count(self, progress: "StepProgress") -> None:
        """Count all steps up to this one."""
        steps, now = progress.step - self._step, time.perf_counter()
        TRAINING_STEPS.add(steps)
        TRAINING_IMAGES.add(steps * progress.global_batch_size)
        TRAINING_SECONDS.add(now - self._counted_at)
        TRAINING_LOSS.set(progress.loss)
        self._step, self._counted_at = progress.step, now
