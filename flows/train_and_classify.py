"""The main job: train a model, then classify the test images with it."""

from prefect import flow

from flows.classify import classify
from flows.parameters import ClassifyParameters, TrainParameters
from flows.train import train
from infra.cluster.connection import connected_to_ray
from infra.orchestration.flow_progress import shows_progress
from infra.orchestration.flow_run import completed_with
from tasks.classification.compare import compare_with_labels
from tasks.dataset import split_uris
from tasks.summaries import MainJobSummary

TEST_TABLE = "fashion-mnist-test"


@flow(name="train-and-classify")
@connected_to_ray
@shows_progress
def train_and_classify(parameters: TrainParameters = TrainParameters()) -> MainJobSummary:  # noqa: B008 # it is frozen
    """Train a model, classify the test images with it, and compare the predictions with the labels."""
    training = train(parameters)
    test_images = split_uris(training.dataset, "test")
    version = str(training.registration.version.version)
    classification = classify(ClassifyParameters(inputs=test_images, table=TEST_TABLE, model=version))
    checked = compare_with_labels(classification.batches, training.dataset, "test")
    return completed_with(MainJobSummary(training, classification, checked))
