"""Export metrics under names that follow Prometheus's rules, without ever failing the work."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cluster.prometheus import Counter, Gauge, StageTimer
from tasks import prometheus as work_metrics
from tasks.classification.reasons import reason_kind
from tasks.prometheus import StepCounter

ROOT = Path(__file__).parents[4]
EXPORTED = [found for found in vars(work_metrics).values() if isinstance(found, Counter | Gauge)]


class RecordingCounter(Counter):
    """Keeps its values in this process."""

    def __init__(self) -> None:
        super().__init__("recorded_total", "Values of a test.", ("stage",))
        object.__setattr__(self, "values", {})

    def add(self, value: float, **labels: str) -> None:
        values: dict[str, float] = self.__dict__["values"]
        values[labels["stage"]] = values.get(labels["stage"], 0) + value


@pytest.mark.parametrize("metric", EXPORTED, ids=lambda metric: str(metric.name))
def test_metric_name_follows_prometheus_conventions(metric: Counter | Gauge) -> None:
    assert re.fullmatch(r"fmnist_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == isinstance(metric, Counter)


def test_metric_names_are_unique() -> None:
    names = [metric.name for metric in EXPORTED]
    assert len(names) == len(set(names))


def test_metric_without_ray_does_nothing_and_imports_no_ray() -> None:
    program = (
        "import sys; from tasks.prometheus import IMAGES, SHARDS_LEFT\n"
        "IMAGES.add(3, outcome='predicted', reason=''); SHARDS_LEFT.set(1, table='t')\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("truncated: 12 bytes are missing", "truncated"),
        ("not an image: no known format", "not an image"),
        ("s3://bucket/key is odd", "other"),
        ("", "other"),
    ],
)
def test_label_takes_only_known_reasons(reason: str, kind: str) -> None:
    assert reason_kind(reason) == kind


def test_stages_are_timed_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("infra.cluster.prometheus.time.perf_counter", lambda: clock)

    def items() -> Iterator[int]:
        nonlocal clock
        for item in range(2):
            clock += 3
            yield item

    counter = RecordingCounter()
    stages = StageTimer(counter)
    for _ in stages.measure_each("read", items()):
        with stages.measure("write"):
            clock += 20
    stages.export()
    assert counter.__dict__["values"] == {"read": 6, "write": 40}


def test_stages_are_exported_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = RecordingCounter()
    stages = StageTimer(counter)
    for _ in range(1000):
        with stages.measure("read"):
            pass
    assert counter.__dict__["values"] == {}
    monkeypatch.setattr("infra.cluster.prometheus._EXPORT_SECONDS", -1.0)
    with stages.measure("read"):
        pass
    assert counter.__dict__["values"]["read"] > 0


def test_failed_stage_is_counted() -> None:
    counter = RecordingCounter()
    stages = StageTimer(counter)
    with pytest.raises(RuntimeError), stages.measure("read"):
        raise RuntimeError
    stages.export()
    assert "read" in counter.__dict__["values"]


def test_resumed_run_counts_only_its_new_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[float] = []
    monkeypatch.setattr(Counter, "add", lambda self, value: counted.append(value) if "images" in self.name else None)

    class Progress:
        step, global_batch_size, loss = 130, 10, 0.5

    counter = StepCounter(100)
    counter.count(Progress)
    Progress.step = 150
    counter.count(Progress)
    assert counted == [300, 200]


def test_training_counts_the_steps_and_images_of_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch

    from fmnist_model.dataset import LabelledImages
    from fmnist_model.training.loop import TrainingRun
    from fmnist_model.training.recipe import TrainingRecipe

    counted: dict[str, float] = {}

    def add(self: Counter, value: float) -> None:
        counted[self.name] = counted.get(self.name, 0) + value

    monkeypatch.setattr(Counter, "add", add)
    data = LabelledImages(np.zeros((95, 28, 28), np.uint8), np.arange(95) % 10)
    run = TrainingRun(TrainingRecipe(epochs=2, global_batch_size=10), data, torch.device("cpu"))
    epochs = list(run.epochs(StepCounter(0).count))
    assert counted["fmnist_training_images_total"] == sum(epoch.images for epoch in epochs) == 180
    assert counted["fmnist_training_steps_total"] == 18
