"""What each flow returns."""

from dataclasses import dataclass, field

from fmnist_model.evaluation.results import TestResult
from infra.storage.datasets import DatasetRecord
from infra.storage.prediction_table import BatchManifest
from tasks.classification.plan import PlannedWork
from tasks.classification.summarize import CheckedPredictions
from tasks.training.register import Registration
from tasks.training.trained_run import TrainedRun


@dataclass(frozen=True)
class TrainingSummary:
    """A run of the training flow."""

    dataset: DatasetRecord
    run: TrainedRun
    result: TestResult
    registration: Registration

    def in_words(self) -> str:
        """What came of it, in a line."""
        version, champion = self.registration.version.version, self.registration.champion
        standing = "champion" if champion == version else f"version {champion} stays champion"
        return f"Version {version} ({standing}): {self.result.accuracy:.2%} of the test images are right."


@dataclass(frozen=True)
class ClassificationSummary:
    """A run of the classification flow; without manifests where nothing was new."""

    table: str
    work: PlannedWork
    manifests: list[BatchManifest]
    reports: list[str] = field(default_factory=list)
    """URIs of the batches' reports; one that could not be made is missing."""

    def in_words(self) -> str:
        """What came of it, in a line."""
        model = f"model version {self.work.model.version}"
        if not self.manifests:
            return (
                f"Nothing new: table {self.table} holds all {self.work.already_done:,} images already, predicted by "
                f"{model}."
            )
        predicted = sum(manifest.predicted for manifest in self.manifests)
        quarantined = sum(manifest.quarantined for manifest in self.manifests)
        return f"{predicted:,} images of {self.table} predicted by {model}, {quarantined:,} in quarantine."


@dataclass(frozen=True)
class MainJobSummary:
    """A run of the main job."""

    training: TrainingSummary
    classification: ClassificationSummary
    checked: CheckedPredictions

    def in_words(self) -> str:
        """What came of it, in a line."""
        return f"{self.training.in_words()} {self.classification.in_words()}"
