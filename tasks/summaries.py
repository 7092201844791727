"""Define what each flow returns."""

from dataclasses import dataclass, field

from fmnist_model.evaluation.results import TestResult
from infra.storage.datasets import DatasetRecord
from infra.storage.tables.books import BatchBooks
from tasks.classification.compare import CheckedPredictions
from tasks.classification.plan import PlannedWork
from tasks.training.register import Registration
from tasks.training.run import TrainedRun


@dataclass(frozen=True)
class TrainingSummary:
    """Result of the training flow."""

    dataset: DatasetRecord
    run: TrainedRun
    result: TestResult
    registration: Registration

    def in_words(self) -> str:
        """Summarize the result in one line."""
        version, standing = self.registration.version.version, self.registration.standing
        return f"Version {version} ({standing}) classifies {self.result.accuracy:.2%} of the test images correctly."


@dataclass(frozen=True)
class ClassificationSummary:
    """Result of the classification flow."""

    table: str
    work: PlannedWork
    batches: list[BatchBooks]
    """The committed batches. Empty if there was nothing new."""
    reports: list[str] = field(default_factory=list)
    """URIs of the batches' reports, without reports that could not be written."""

    def in_words(self) -> str:
        """Summarize the result in one line."""
        passed_over = self.work.passed_over.text()
        return f"{self._counts()} {passed_over}." if passed_over else self._counts()

    def _counts(self) -> str:
        model = f"model version {self.work.model.version}"
        if not self.batches:
            return self._nothing_new(model)
        predicted = sum(books.predicted for books in self.batches)
        quarantined = sum(books.quarantined for books in self.batches)
        return f"{predicted:,} images in table {self.table} predicted by {model}, {quarantined:,} in quarantine."

    def _nothing_new(self, model: str) -> str:
        done = self.work.done
        if not done.quarantined:
            return f"Nothing new: table {self.table} holds all {done.images:,} images, predicted by {model}."
        return (
            f"Nothing new: table {self.table} holds all {done.images:,} images, {done.images - done.quarantined:,} "
            f"predicted by {model} and {done.quarantined:,} in quarantine. --retry-quarantined tries these again."
        )


@dataclass(frozen=True)
class MainJobSummary:
    """Result of the flow `train-and-classify`."""

    training: TrainingSummary
    classification: ClassificationSummary
    checked: CheckedPredictions

    def in_words(self) -> str:
        """Summarize the results in one line."""
        return f"{self.training.in_words()} {self.classification.in_words()}"
