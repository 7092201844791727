"""A cluster whose nodes share nothing but the network, and come and go; the store is on S3.

The nodes have nothing of this project installed: it comes with the job.
"""

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fmnist_model.images.decode import encode_png
from infra.storage.batch_log import committed_batches
from infra.storage.checkpoints import list_checkpoints, list_runs
from infra.storage.datasets import read_dataset
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.prediction_table import read_rows
from tasks.training.splits import load_split
from tests.harness.cluster import Cluster, ray_cluster
from tests.harness.commands import typed
from tests.harness.deployed import deployed
from tests.harness.s3_server import S3Server
from tests.harness.served import FINAL, until

pytest_plugins = ["tests.harness.gateways"]

FILES, ROWS = 24, 20_000
"""Parquet files to classify, and the images of each."""


@dataclass
class Place:
    """A cluster, and a store that it reaches."""

    cluster: Cluster
    settings: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        return self.settings | self.cluster.environment


@dataclass
class Running:
    """A command that runs, and what it has said so far."""

    process: "subprocess.Popen[str]"
    said: list[str]
    reader: threading.Thread
    """Of what it says."""

    def until(self, sought: Callable[[str], bool], seconds: float) -> str:
        """Wait for a line; only those since the last call are looked at."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            while self.said:
                line = self.said.pop(0)
                print(line, end="")
                if sought(line):
                    return line
            assert self.process.poll() is None, "the command ended first"
            time.sleep(0.1)
        raise AssertionError("the command did not say it")

    def rest(self) -> str:
        """What it has said since it was last waited for; it has ended."""
        self.reader.join(timeout=10)
        return "".join(self.said)

    def end(self, seconds: float) -> str:
        """Wait for it to end well; what it printed."""
        self.process.wait(timeout=seconds)
        said = self.rest()
        assert self.process.returncode == 0, said
        return said


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Running]:
    process = typed(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **environment)
    assert process.stdout is not None
    said: list[str] = []
    reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
    reader.start()
    found = Running(process, said, reader)
    try:
        yield found
    finally:
        process.kill()
        process.wait()
        reader.join()


@pytest.fixture(scope="module")
def place(ceph_or_moto: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cluster")
    settings = {"FMNIST_STORE": f"s3://{ceph_or_moto.bucket}/cluster", "FMNIST_STATE_DIR": f"{folder}/state"}
    with ray_cluster(folder, ceph_or_moto.environment) as cluster:
        yield Place(cluster, settings | ceph_or_moto.environment)


@pytest.fixture
def store(place: Place, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in place.settings.items():
        monkeypatch.setenv(name, value)
    return open_store(place.settings["FMNIST_STORE"])


@dataclass
class DeployedRun:
    """The main job, started at a Prefect server and done by a worker, and what the server had of it."""

    state: str
    messages: str


@pytest.fixture(scope="module")
def deployed_run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> DeployedRun:
    """Nodes join when training waits for them, as a cluster's autoscaler would have them do."""
    settings = {name: value for name, value in place.environment.items() if name.startswith("FMNIST_")}
    grows = {"FMNIST_RAY_MAX_CPUS": "2"}
    secrets = {name: value for name, value in place.environment.items() if name not in settings}
    with deployed(tmp_path_factory.mktemp("prefect"), settings | grows, secrets) as prefect:
        run = prefect.start("train-and-classify", preset="quick", workers="2", recipe={"epochs": 2})
        until(lambda: prefect.tasks("train network", "Running") or prefect.state(run) in FINAL, 120)
        for name in ("one", "two"):
            place.cluster.add_node(name, cpus=1)
        state = prefect.wait(run, seconds=240)
        # A worker's last lines may come after the state.
        with suppress(AssertionError):
            until(lambda: "[rank 1] " in prefect.messages(run), 20)
        return DeployedRun(state, prefect.messages(run))


def test_deployed_main_job_completes_on_a_cluster_that_grows_from_nothing(deployed_run: DeployedRun) -> None:
    assert deployed_run.state == "Completed", deployed_run.messages


def test_deployed_main_job_has_one_row_for_each_test_image(deployed_run: DeployedRun, store: ObjectStore) -> None:
    [manifest] = committed_batches(store, "fashion-mnist-test")
    rows = read_rows(store, [manifest], ["image"])["image"].to_pylist()
    assert sorted(rows) == sorted(_test_images(store))
    assert (manifest.planned, manifest.predicted, manifest.quarantined) == (len(rows), len(rows), 0)


def _test_images(store: ObjectStore) -> Iterator[str]:
    """URIs, by the Parquet files themselves."""
    for key in (stat.key for stat in store.list("datasets/fashion-mnist/test/")):
        filesystem, path = store.arrow(key)
        for row in range(pq.read_metadata(path, filesystem=filesystem).num_rows):
            yield f"{store.uri(key)}#row={row}"


def test_nodes_that_did_the_deployed_main_job_have_no_copy_of_the_project(
    deployed_run: DeployedRun, place: Place
) -> None:
    assert [place.cluster.packages(name) for name in ("one", "two")] == [["ray"], ["ray"]]


def test_what_a_training_worker_logs_is_in_the_log_at_the_server(deployed_run: DeployedRun) -> None:
    assert "[rank 1] Rank 1 of 2 trains on cpu" in deployed_run.messages


@pytest.mark.rounds(full=5, short=1)
def test_training_goes_on_without_a_node_and_grows_when_one_joins(place: Place, store: ObjectStore, seed: int) -> None:
    ensure_nodes(place.cluster, 2)
    runs = set(list_runs(store))
    arguments = ("train", "--preset", "full", "--epochs", "60", "--workers", "1:2", "--keep-best", "100")
    with running(*arguments, **place.environment) as command:
        command.until(lambda line: "epoch 2/" in line and "2 workers" in line, 120)
        kill_one(place.cluster, seed)
        command.until(lambda line: "1 worker," in line, 90)
        place.cluster.add_node(f"joined-{seed}", cpus=1)
        command.until(lambda line: "2 workers" in line, 120)
        command.until(lambda line: "2 workers" in line, 60)
        command.process.send_signal(signal.SIGINT)
        command.process.wait(timeout=60)
    [run_id] = set(list_runs(store)) - runs
    assert f"--resume {run_id}" in command.rest()
    epochs = list_checkpoints(store, run_id)
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) >= 3


@pytest.mark.rounds(full=10, short=1)
def test_node_that_dies_in_classification_loses_no_image(
    place: Place, store: ObjectStore, images: str, seed: int
) -> None:
    ensure_nodes(place.cluster, 2)
    table = f"killed-{seed}"
    with running("classify", images, "--table", table, **place.environment) as command:
        command.until(lambda line: "Classifying into" in line and ": 0/" not in line, 120)
        kill_one(place.cluster, seed)
        died = time.monotonic()
        command.until(lambda line: "Classifying into" in line, 60)
        print(f"seed {seed}: progress {time.monotonic() - died:.1f} s after a node's death")
        command.end(240)
    rows = read_rows(store, committed_batches(store, table), ["image"])
    assert len(rows) == pc.count_distinct(rows["image"]).as_py() == FILES * ROWS


def test_run_whose_head_is_lost_fails_and_is_resumed_on_another_cluster(
    place: Place, store: ObjectStore, ceph_or_moto: S3Server, tmp_path: Path
) -> None:
    ensure_nodes(place.cluster, 2)
    runs = set(list_runs(store))
    arguments = ("--preset", "quick", "--workers", "2", "--keep-best", "100")
    with running("train", *arguments, **place.environment) as command:
        command.until(lambda line: "epoch 3/" in line, 120)
        for name in list(place.cluster.nodes):
            place.cluster.kill(name)
        command.process.wait(timeout=120)
    said = command.rest()
    print(said)
    assert command.process.returncode == 1
    [run_id] = set(list_runs(store)) - runs
    assert f"--resume {run_id}" in said
    assert "Traceback" not in said
    with ray_cluster(tmp_path, ceph_or_moto.environment) as other:
        other.add_node("one", cpus=2)
        arguments = ("train", "--resume", run_id, "--keep-best", "100")
        with running(*arguments, **place.settings, **other.environment) as command:
            command.until(lambda line: "Training: epoch" in line, 120)
            command.end(120)
    assert list_checkpoints(store, run_id) == list(range(1, 7))


def ensure_nodes(cluster: Cluster, count: int) -> None:
    """Let nodes with a CPU each join until there are so many."""
    while len(cluster.nodes) <= count:  # the head is one
        cluster.add_node(f"node-{time.monotonic_ns()}", cpus=1)


def kill_one(cluster: Cluster, seed: int) -> None:
    """Have a node vanish that is not the head."""
    name = random.Random(seed).choice([name for name in cluster.nodes if name != "head"])
    print(f"seed {seed}: {name} killed")
    cluster.kill(name)


@pytest.fixture(scope="module")
def images(place: Place, data_store: str) -> str:
    """URI of a folder with images in the place's store."""
    source = open_store(data_store)
    dataset = read_dataset(source, "fashion-mnist")
    assert dataset is not None
    pixels = load_split(source, dataset, "test").images
    encoded = pa.table({"image": [encode_png(image) for image in pixels] * (ROWS // len(pixels))})
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in place.settings.items():
            monkeypatch.setenv(name, value)
        store = open_store(place.settings["FMNIST_STORE"])
        for number in range(FILES):
            with store.publish(f"images/{number:02d}.parquet") as stream:
                pq.write_table(encoded, stream)
    return f"{place.settings['FMNIST_STORE']}/images"
