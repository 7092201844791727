"""Evaluate a checkpoint from the store on the test images, calibrated on the validation images."""

from fmnist_model.dataset import hold_out
from fmnist_model.evaluation.results import TestResult
from fmnist_model.training.recipe import TrainingRecipe
from infra.cluster.progress_board import ProgressBoard
from infra.settings import load_settings
from infra.storage.checkpoints import WEIGHTS, read_file, read_record
from infra.storage.datasets import DatasetRecord
from infra.storage.object_store import open_store
from tasks.step import step
from tasks.training.run import TrainedRun
from tasks.training.splits import load_split


@step("evaluate checkpoint")
def evaluate_checkpoint(run: TrainedRun, dataset: DatasetRecord) -> TestResult:
    """Read the run's last checkpoint back, verify it, and classify the test images with it.

    The temperature of its probabilities is fitted on the validation images of the run's recipe.

    Raises:
        CheckpointCorrupt: the checkpoint is damaged.
        InvalidDataset: the dataset is damaged.
    """
    from fmnist_model.evaluation.evaluate import calibrate_and_evaluate
    from fmnist_model.network import best_device, load_weights

    ProgressBoard().post("evaluate", "Evaluating on the test images", run_id=run.run_id)
    store = open_store(load_settings().store)
    record = read_record(store, run.run_id, run.epoch)
    network = load_weights(read_file(store, record, WEIGHTS), store.uri(record.key))
    test = load_split(store, dataset, "test")
    held_out = TrainingRecipe.from_record(record.parameters).validation_images
    validation = hold_out(load_split(store, dataset, "train"), held_out)[1] if held_out else None
    return calibrate_and_evaluate(network, validation, test, best_device())
