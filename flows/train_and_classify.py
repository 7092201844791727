"""The main job: train, then classify the test images with what was trained."""

from prefect import flow

from flows.classify import classify
from flows.parameters import ClassifyParameters, TrainParameters
from flows.train import train
from infra.cluster.connection import connected_to_ray
from infra.orchestration.flow_progress import shows_progress
from infra.orchestration.flow_run import finished
from tasks.classification.compare import compare_with_labels
from tasks.dataset import split_uris
from tasks.summaries import MainJobSummary

TEST_TABLE = "fashion-mnist-test"


@flow(name="train-and-classify")
@connected_to_ray
@shows_progress
def train_and_classify(parameters: TrainParameters = TrainParameters()) -> MainJobSummary:  # noqa: B008 # it is frozen
    """Train, classify the test images from their shards, and hold the predictions against the labels."""
    training = train(parameters)
    test_images = ClassifyParameters(
        inputs=split_uris(training.dataset, "test"), table=TEST_TABLE, model=str(training.registration.version.version)
    )
    classification = classify(test_images)
    checked = compare_with_labels(classification.manifests, training.dataset, "test")
    summary = MainJobSummary(training=training, classification=classification, checked=checked)
    return finished(summary, summary.in_words())
