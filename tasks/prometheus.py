"""What the workers export for Prometheus (docs/operations.md). Free of Prefect, for the workers import it.

Of GPUs, memory and CPUs, Ray's agents export what there is to know.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.cluster.prometheus import Counter, Gauge

IMAGES = Counter(
    "fmnist_images_total",
    "Images of the shards that were done: predicted, or quarantined for a reason.",
    ("outcome", "reason"),
)
SHARDS = Counter(
    "fmnist_shards_total", "Shards: done, found done by another run, or failed with an error.", ("outcome", "error")
)
SHARDS_LEFT = Gauge("fmnist_shards_left", "Shards of the batch under way that are not done yet.", ("table",))
STAGE_SECONDS = Counter(
    "fmnist_stage_seconds_total",
    "Seconds that classifiers were at a stage: read, decode, forward, write. They go on at once.",
    ("stage",),
)
TRAINING_IMAGES = Counter("fmnist_training_images_total", "Images that were trained on, all workers together.")
TRAINING_STEPS = Counter("fmnist_training_steps_total", "Steps of the optimizer.")
TRAINING_SECONDS = Counter(
    "fmnist_training_seconds_total", "Seconds in the training loop, validation and waiting for checkpoints included."
)
TRAINING_LOSS = Gauge("fmnist_training_loss", "Loss on the training images of the epoch so far.")
TRAINING_ACCURACY = Gauge("fmnist_training_validation_accuracy", "Share of the images held out that is recognized.")
TRAINING_FAILURES = Counter("fmnist_training_failures_total", "Training runs that can't go on, by why.", ("error",))
CHECKPOINTS = Counter("fmnist_checkpoints_total", "Checkpoints that were written.")
CHECKPOINT_SECONDS = Counter("fmnist_checkpoint_seconds_total", "Seconds that it took to write them.")
TRAINING_RESUMES = Counter(
    "fmnist_training_resumes_total", "Trainings that went on from a checkpoint: after workers died, or when resumed."
)

_REASONS = frozenset(
    ["changed", "damaged", "missing", "not an image", "permission", "too large", "truncated", "unreadable", "vanished"]
)


def reason_kind(reason: str) -> str:
    """What a reason of quarantine begins with, where it is one of those known; Prometheus keeps every one it sees."""
    kind = reason.partition(":")[0]
    return kind if kind in _REASONS else "other"


@contextmanager
def failures_counted() -> Iterator[None]:
    """Count a shard that fails in the block."""
    try:
        yield
    except Exception as error:
        SHARDS.add(1, outcome="failed", error=type(error).__name__)
        raise


class TrainingMetrics:
    """Counts what rank 0 is told of a run's steps."""

    def __init__(self, steps_done: int) -> None:
        self._step, self._at = steps_done, time.perf_counter()

    def at(self, progress: Any) -> None:
        """Count up to a step, as `TrainingRun.epochs` tells of it: twice a second at most."""
        steps, now = progress.step - self._step, time.perf_counter()
        TRAINING_STEPS.add(steps)
        TRAINING_IMAGES.add(steps * progress.global_batch_size)
        TRAINING_SECONDS.add(now - self._at)
        TRAINING_LOSS.set(progress.loss)
        self._step, self._at = progress.step, now
