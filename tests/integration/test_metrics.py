"""Scrape Ray's node agent as Prometheus does, and compare the metrics with the books."""

import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import ClassifyParameters, RecipeParameters, RunParameters, TrainParameters
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import open_store
from tests.harness.commands import printed
from tests.unit.tasks.classification.image_inputs import picture, save_files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
_EXPORT_SECONDS = 11
"""A little longer than the interval at which processes export their metrics."""

NODES = "ray_cluster_active_nodes"
"""A metric that only a permanent cluster has."""

Labels = tuple[tuple[str, str], ...]


def scrape() -> dict[str, dict[Labels, float]]:
    """Return all samples, by name and by our own labels."""
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    [node] = [node for node in ray.nodes() if node["Alive"]]
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(page, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name.islower() and "otel" not in name}
            labels = tuple(sorted((name, value) for name, value in own.items() if value))
            series = found.setdefault(sample.name, {})
            series[labels] = series.get(labels, 0) + sample.value
    return found


def total(scraped: dict[str, dict[Labels, float]], name: str, **labels: str) -> float:
    series = scraped.get(name, {})
    return sum(value for found, value in series.items() if set(labels.items()) <= set(found))


class Increase:
    """Increase of the counters since the object was made."""

    def __init__(self) -> None:
        time.sleep(_EXPORT_SECONDS)  # until the metrics of earlier tests are exported
        self._before = scrape()
        self.now = self._before

    def of(self, name: str, **labels: str) -> float:
        return total(self.now, name, **labels) - total(self._before, name, **labels)

    def left(self) -> float | None:
        """Return the number of shards left in the table."""
        return self.now.get("ray_fmnist_shards_left", {}).get((("table", "counted"),))

    def wait_for(self, is_exported: Callable[[], bool]) -> None:
        """Scrape until a condition holds. Each process exports its metrics at its own time."""
        deadline = time.monotonic() + 3 * _EXPORT_SECONDS
        while not is_exported() and time.monotonic() < deadline:
            time.sleep(0.5)
            self.now = scrape()


@pytest.fixture(scope="module")
def classified(main_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a batch's books and its increase of the metrics."""
    from flows.classify import classify
    from fmnist_model.images.decode import encode_png

    folder = tmp_path_factory.mktemp("metrics")
    images = {f"{number}.png": encode_png(picture(number)) for number in range(40)}
    save_files(folder, images | {"empty.png": b"", "text.png": b"no picture", "cut.png": images["7.png"][:-40]})
    increase = Increase()
    summary = classify(ClassifyParameters(inputs=[str(folder)], table="counted", max_error_share=1))
    [books] = summary.batches
    images = "ray_fmnist_images_total"
    increase.wait_for(lambda: increase.of(images) >= books.planned and increase.left() == 0)
    return books, increase


def test_every_image_in_the_books_is_counted_once(classified: Any) -> None:
    books, increase = classified
    images = "ray_fmnist_images_total"
    assert books.planned == 43
    assert increase.of(images) == books.planned
    assert increase.of(images, outcome="predicted") == books.predicted == 40
    assert increase.of(images, outcome="quarantined") == books.quarantined == 3
    assert increase.of(images, reason="not an image") == 2
    assert increase.of(images, reason="truncated") == 1


def test_every_shard_is_counted_once(classified: Any) -> None:
    books, increase = classified
    assert increase.of("ray_fmnist_shards_total") == books.shards
    assert increase.of("ray_fmnist_shards_total", outcome="done") == books.shards


@pytest.mark.parametrize("stage", ["read", "decode", "forward", "write"])
def test_every_stage_has_a_duration(classified: Any, stage: str) -> None:
    _, increase = classified
    assert 0 < increase.of("ray_fmnist_stage_seconds_total", stage=stage) < 60


def test_no_shard_is_left_at_the_end(classified: Any) -> None:
    _, increase = classified
    assert increase.left() == 0


@pytest.fixture(scope="module")
def trained(main_job: Any, session_store: str) -> Iterator[Any]:
    """Yield the summary of a run of two epochs and its increase of the metrics."""
    from flows.train import train

    increase = Increase()
    parameters = TrainParameters(
        preset="quick",
        workers="1",
        recipe=RecipeParameters(epochs=2, learning_rate=0.001),
        run=RunParameters(from_model="champion"),
    )
    summary = train(parameters)
    increase.wait_for(lambda: increase.of("ray_fmnist_checkpoints_total") >= 2)
    yield summary, increase
    ModelRegistry(open_store(session_store)).point("champion", main_job.training.registration.version.version)


def test_steps_images_and_checkpoints_of_a_training_are_counted(trained: Any, session_store: str) -> None:
    import pyarrow.parquet as pq

    summary, increase = trained
    steps = pq.read_metadata(
        f"{session_store.removeprefix('file://')}/runs/{summary.run.run_id}/steps.parquet"
    ).num_rows
    assert increase.of("ray_fmnist_training_steps_total") == steps
    assert increase.of("ray_fmnist_training_images_total") % steps == 0
    assert increase.of("ray_fmnist_training_images_total") > 2 * 50_000
    assert increase.of("ray_fmnist_checkpoints_total") == 2
    assert 0 < increase.of("ray_fmnist_checkpoint_seconds_total") < 60
    assert 0 < increase.of("ray_fmnist_training_seconds_total") <= summary.run.seconds


def test_rules_dashboard_and_page_name_only_metrics_that_exist(classified: Any, trained: Any) -> None:
    from tasks import prometheus as work_metrics

    ours = {f"ray_{found.name}" for found in vars(work_metrics).values() if hasattr(found, "description")}
    lose_a_worker()  # otherwise, Ray has no metric for that
    shown = scrape().keys() | ours  # some exist only during a run or after a failure
    files = [*(ROOT / "infra" / "deploy" / "monitoring").glob("*"), ROOT / "docs" / "operations.md"]
    named = {name for file in files for name in re.findall(r"\bray_[a-z_0-9]+\b", file.read_text())}
    only_with_gpus = {name for name in named if name.startswith(("ray_node_gpu", "ray_node_gram"))}
    assert {name for name in ours if name not in named} == set()
    assert named - shown - only_with_gpus - {"ray_head", NODES} == set()


COUNT_NODES = """
from flows.cli.services import prepare_environment

prepare_environment()

import time
import urllib.request

import ray

from infra.cluster.local_ray import ray_head

with ray_head():
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(1)
        page = urllib.request.urlopen(url, timeout=10).read().decode()
        if counted := [line for line in page.splitlines() if line.startswith("ray_cluster_active_nodes{")]:
            print(*{line.split()[-1] for line in counted})
            break
"""


def test_permanent_cluster_counts_its_nodes(running_services: None, tmp_path: Path) -> None:
    assert printed(COUNT_NODES, tmp_path) == ["1.0"]


def lose_a_worker() -> None:
    """Have a worker process die, and wait until Ray counts it."""
    import ray

    @ray.remote(max_retries=0)
    def die() -> None:
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(die.remote())
    deadline = time.monotonic() + 3 * _EXPORT_SECONDS
    while "ray_unintentional_worker_failures_total" not in scrape() and time.monotonic() < deadline:
        time.sleep(0.5)
