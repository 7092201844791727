"""A run reports its progress, but not more often than a person can read it."""

from dataclasses import replace

import pytest

from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.progress import StepProgress
from tests.unit.fmnist_model.images.striped_images import stripes
from tests.unit.fmnist_model.training.toy_training import CPU, RECIPE, trained

INTERVAL = "fmnist_model.training.loop._PROGRESS_SECONDS"


@pytest.fixture(params=[0.0, 60.0], ids=["after each step", "at the end"])
def reported(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[StepProgress]:
    """All reports of a run that may report every step, or only the last."""
    monkeypatch.setattr(INTERVAL, request.param)
    progress: list[StepProgress] = []
    list(TrainingRun(RECIPE, stripes(), CPU).epochs(progress.append))
    return progress


def test_progress_never_goes_back(reported: list[StepProgress]):
    steps = [(progress.epoch, progress.step) for progress in reported]
    assert steps == sorted(set(steps))


def test_progress_ends_at_the_last_step(reported: list[StepProgress]):
    last = reported[-1]
    assert (last.step, last.epoch) == (last.steps, last.epochs) == (27, 3)


def test_last_progress_equals_the_metrics_of_the_epoch(reported: list[StepProgress]):
    epoch = trained(RECIPE)[1][-1]
    assert (reported[-1].loss, reported[-1].accuracy) == (epoch.loss, epoch.accuracy)


def test_short_epochs_share_the_reporting_interval(monkeypatch: pytest.MonkeyPatch):
    """On a GPU, epochs take milliseconds."""
    monkeypatch.setattr(INTERVAL, 60.0)
    progress: list[StepProgress] = []
    list(TrainingRun(replace(RECIPE, epochs=20), stripes(64), CPU).epochs(progress.append))
    assert len(progress) == 1
