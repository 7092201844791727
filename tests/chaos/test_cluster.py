"""Run jobs on a Ray cluster whose nodes join and die. The nodes share nothing but the network and an S3 store.

This project isn't installed on the nodes. It comes with the job.
"""

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fmnist_model.images.decode import encode_png
from infra.storage.checkpoints import list_checkpoints, list_runs
from infra.storage.datasets import read_dataset
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import read_books
from tasks.training.splits import load_split
from tests.harness.cluster import Cluster, ray_cluster
from tests.harness.commands import start_command
from tests.harness.deployed import deployed
from tests.harness.s3_server import S3Server
from tests.harness.served import FINAL, until
from tests.harness.tables import check_parts, read_predictions

pytest_plugins = ["tests.harness.gateways"]

FILES, ROWS = 24, 20_000
"""Number of Parquet files to classify, and of images in each."""
_FAST_DETECTION = {"RAY_health_check_period_ms": "1000"}
"""Have the head declare a killed node dead after 5 s. Ray's default takes 15 s."""


@dataclass
class Place:
    """A cluster and the settings of a store that it can reach."""

    cluster: Cluster
    settings: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        return self.settings | self.cluster.environment


@dataclass
class Running:
    """A command that runs in the background, and its output."""

    process: "subprocess.Popen[str]"
    lines: list[str]
    """Printed lines that `until` hasn't seen yet."""
    reader: threading.Thread
    """Thread that appends to `lines`."""

    def until(self, sought: Callable[[str], bool], seconds: float) -> str:
        """Wait for a line. Looks only at lines printed since the last call."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            while self.lines:
                line = self.lines.pop(0)
                print(line, end="")
                if sought(line):
                    return line
            assert self.process.poll() is None, "the command ended before it printed the line"
            time.sleep(0.1)
        raise AssertionError("the command did not print the line in time")

    def rest(self) -> str:
        """Return what the command printed since the last `until`. Call it once the command has ended."""
        self.reader.join(timeout=10)
        return "".join(self.lines)

    def succeed(self, seconds: float) -> None:
        """Wait until the command ends with exit code 0."""
        self.process.wait(timeout=seconds)
        assert self.process.returncode == 0, self.rest()


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Running]:
    process = start_command(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **environment)
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        yield Running(process, lines, reader)
    finally:
        process.kill()
        process.wait()
        reader.join()


@pytest.fixture(scope="module")
def place(ceph_or_moto: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cluster")
    settings = {"FMNIST_STORE": f"s3://{ceph_or_moto.bucket}/cluster", "FMNIST_STATE_DIR": f"{folder}/state"}
    with ray_cluster(folder, ceph_or_moto.environment | _FAST_DETECTION) as cluster:
        yield Place(cluster, settings | ceph_or_moto.environment)


@pytest.fixture
def store(place: Place, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in place.settings.items():
        monkeypatch.setenv(name, value)
    return open_store(place.settings["FMNIST_STORE"])


@dataclass
class DeployedRun:
    """Outcome of the main job, run by a worker for a Prefect server."""

    state: str
    messages: str
    """Log lines at the server."""


@pytest.fixture(scope="module")
def deployed_run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> DeployedRun:
    """Run the deployed main job. Nodes join once training waits for them, as an autoscaler would have them do."""
    settings = {name: value for name, value in place.environment.items() if name.startswith("FMNIST_")}
    grows = {"FMNIST_RAY_MAX_CPUS": "2"}
    secrets = {name: value for name, value in place.environment.items() if name not in settings}
    with deployed(tmp_path_factory.mktemp("prefect"), settings | grows, secrets) as prefect:
        run = prefect.start("train-and-classify", preset="quick", workers="2", recipe={"epochs": 2})
        until(lambda: prefect.tasks("train network", "Running") or prefect.state(run) in FINAL, 120)
        for name in ("one", "two"):
            place.cluster.add_node(name, cpus=1)
        state = prefect.wait(run, seconds=240)
        # A worker's last lines may arrive after the state.
        with suppress(AssertionError):
            until(lambda: "[rank 1] " in prefect.messages(run), 20)
        return DeployedRun(state, prefect.messages(run))


def test_deployed_main_job_completes_on_a_cluster_that_grows_from_nothing(deployed_run: DeployedRun) -> None:
    assert deployed_run.state == "Completed", deployed_run.messages


def test_deployed_main_job_has_one_row_for_each_test_image(deployed_run: DeployedRun, store: ObjectStore) -> None:
    [books] = read_books(store, "fashion-mnist-test")
    rows = read_predictions(store, "fashion-mnist-test", ["image"])["image"].to_pylist()
    assert sorted(rows) == sorted(_test_images(store))
    assert (books.planned, books.predicted, books.quarantined) == (len(rows), len(rows), 0)


def _test_images(store: ObjectStore) -> Iterator[str]:
    """Derive the images' URIs from the Parquet files themselves."""
    for key in (stat.key for stat in store.list("datasets/fashion-mnist/test/")):
        filesystem, path = store.arrow(key)
        for row in range(pq.read_metadata(path, filesystem=filesystem).num_rows):
            yield f"{store.uri(key)}#row={row}"


def test_nodes_of_the_deployed_main_job_have_no_copy_of_the_project(deployed_run: DeployedRun, place: Place) -> None:
    assert [place.cluster.packages(name) for name in ("one", "two")] == [["ray"], ["ray"]]


def test_log_of_a_training_worker_reaches_the_server(deployed_run: DeployedRun) -> None:
    assert "[rank 1] Rank 1 of 2 trains on cpu" in deployed_run.messages


@pytest.mark.rounds(full=5, short=1)
def test_training_continues_without_a_node_and_grows_when_one_joins(
    place: Place, store: ObjectStore, seed: int
) -> None:
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
        command.process.wait(timeout=400)
    [run_id] = set(list_runs(store)) - runs
    assert f"--resume {run_id}" in command.rest()
    epochs = list_checkpoints(store, run_id)
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) >= 3


@pytest.mark.rounds(full=10, short=1)
def test_node_that_dies_in_classification_loses_no_image(
    place: Place, store: ObjectStore, images: str, deployed_run: DeployedRun, seed: int
) -> None:
    # The deployed run registered the model.
    ensure_nodes(place.cluster, 2)
    table = f"killed-{seed}"
    with running("classify", images, "--table", table, **place.environment) as command:
        command.until(lambda line: "Classifying into" in line and ": 0/" not in line, 120)
        kill_one(place.cluster, seed)
        died = time.monotonic()
        command.until(lambda line: "Classifying into" in line, 60)
        print(f"seed {seed}: progress {time.monotonic() - died:.1f} s after a node's death")
        command.succeed(240)
    rows = read_predictions(store, table, ["image"])
    assert len(rows) == pc.count_distinct(rows["image"]).as_py() == FILES * ROWS
    check_parts(store, table)


def test_local_folder_is_refused_unless_all_machines_share_it(
    place: Place, store: ObjectStore, deployed_run: DeployedRun, tmp_path: Path
) -> None:
    ensure_nodes(place.cluster, 2)
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((28, 28), np.uint8)))
    with running("classify", str(tmp_path), "--table", "local", **place.environment) as command:
        command.process.wait(timeout=400)
    printed = command.rest()
    assert command.process.returncode == 2, printed
    assert f"FMNIST_SHARED_FOLDERS={tmp_path}" in printed
    assert "Traceback" not in printed
    assert read_books(store, "local") == []
    # The nodes are on this machine, so they do share its folders.
    shared = {"FMNIST_SHARED_FOLDERS": str(tmp_path)}
    with running("classify", str(tmp_path), "--table", "local", **place.environment, **shared) as command:
        command.succeed(120)
    [books] = read_books(store, "local")
    assert (books.predicted, books.quarantined) == (1, 0)


def test_run_whose_head_is_lost_fails_and_is_resumed_on_another_cluster(
    place: Place, store: ObjectStore, ceph_or_moto: S3Server, tmp_path: Path
) -> None:
    ensure_nodes(place.cluster, 2)
    runs = set(list_runs(store))
    arguments = ("--preset", "quick", "--workers", "2", "--keep-best", "100")
    with ExitStack() as stack:
        with running("train", *arguments, **place.environment) as command:
            command.until(lambda line: "epoch 3/" in line, 120)
            for name in list(place.cluster.nodes):
                place.cluster.kill(name)
            # Start the other cluster while the command waits for the head to come back.
            other = stack.enter_context(ray_cluster(tmp_path, ceph_or_moto.environment))
            other.add_node("one", cpus=2)
            command.process.wait(timeout=400)
        printed = command.rest()
        print(printed)
        assert command.process.returncode == 1
        [run_id] = set(list_runs(store)) - runs
        assert f"--resume {run_id}" in printed
        assert "Traceback" not in printed
        arguments = ("train", "--resume", run_id, "--keep-best", "100")
        with running(*arguments, **place.settings, **other.environment) as command:
            command.until(lambda line: "Training: epoch" in line, 120)
            command.succeed(120)
    assert list_checkpoints(store, run_id) == list(range(1, 7))


def ensure_nodes(cluster: Cluster, count: int) -> None:
    """Add nodes with one CPU each until there are `count`."""
    while len(cluster.nodes) <= count:  # the head is one
        cluster.add_node(f"node-{time.monotonic_ns()}", cpus=1)


def kill_one(cluster: Cluster, seed: int) -> None:
    """Kill a node other than the head."""
    name = random.Random(seed).choice([name for name in cluster.nodes if name != "head"])
    print(f"seed {seed}: {name} killed")
    cluster.kill(name)


@pytest.fixture(scope="module")
def images(place: Place, data_store: str) -> str:
    """Write images to the place's store, and return their folder's URI."""
    source = open_store(data_store)
    dataset = read_dataset(source, "fashion-mnist")
    assert dataset is not None
    pixels = load_split(source, dataset, "test").images
    file = BytesIO()
    pq.write_table(pa.table({"image": [encode_png(image) for image in pixels] * (ROWS // len(pixels))}), file)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in place.settings.items():
            monkeypatch.setenv(name, value)
        store = open_store(place.settings["FMNIST_STORE"])
        for number in range(FILES):
            store.create(f"images/{number:02d}.parquet", file.getvalue())
    return f"{place.settings['FMNIST_STORE']}/images"
