"""What each flow returns."""

from dataclasses import dataclass

from fmnist_model.metrics import TestResult
from infra.datasets import DatasetRecord
from infra.prediction_table import BatchManifest
from tasks.planning import PlannedWork
from tasks.registration import Registration
from tasks.report import CheckedPredictions
from tasks.training import TrainedRun


@dataclass(frozen=True)
class TrainingSummary:
    """A run of the training flow."""

    dataset: DatasetRecord
    run: TrainedRun
    result: TestResult
    registration: Registration


@dataclass(frozen=True)
class ClassificationSummary:
    """A run of the classification flow; without manifests where nothing was new."""

    table: str
    work: PlannedWork
    manifests: list[BatchManifest]


@dataclass(frozen=True)
class MainJobSummary:
    """A run of the main job."""

    training: TrainingSummary
    classification: ClassificationSummary
    checked: CheckedPredictions
