"""Evaluate a checkpoint, as it lies in the store, on the test images."""

from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from infra.checkpoints import WEIGHTS, read_file, read_record
from infra.datasets import DatasetRecord
from infra.object_store import open_store
from infra.progress import ProgressBoard
from infra.settings import load_settings
from tasks.dataset import load_split
from tasks.training import TrainedRun


@dataclass(frozen=True)
class TestResult:
    """A checkpoint's results on the test images."""

    images: int
    correct: int
    log_loss: float
    """Nats."""
    recall: dict[str, float]
    """By class name."""
    precision: dict[str, float]
    """By class name."""
    confusion: list[list[int]]
    """Rows are true classes, columns predicted ones."""

    __test__ = False  # no test class, whatever its name begins with

    @property
    def accuracy(self) -> float:
        """Share of the images classified rightly."""
        return self.correct / self.images


@task(name="evaluate checkpoint", cache_policy=NO_CACHE)
def evaluate_checkpoint(run: TrainedRun, dataset: DatasetRecord) -> TestResult:
    """Read back the run's last checkpoint, verified, and classify the test images with it."""
    from fmnist_model.evaluation import evaluate
    from fmnist_model.network import best_device, load_weights

    ProgressBoard().post("evaluate", run_id=run.run_id)
    store = open_store(load_settings().store)
    record = read_record(store, run.run_id, run.epoch)
    network = load_weights(read_file(store, record, WEIGHTS), store.uri(record.key))
    evaluation = evaluate(network, load_split(store, dataset, "test"), best_device())
    return TestResult(
        images=evaluation.images,
        correct=evaluation.correct,
        log_loss=evaluation.log_loss,
        recall=evaluation.recall,
        precision=evaluation.precision,
        confusion=evaluation.confusion.tolist(),
    )
