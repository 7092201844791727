"""Kill a process of `fmnist classify` at a random moment, then run the command again until it succeeds.

Afterwards DuckDB must find every image exactly once across predictions and quarantine, with the same rows as after an
undisturbed run.
"""

import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmnist_model.images.decode import encode_png
from infra.storage.datasets import read_dataset
from infra.storage.keys import books_folder, quarantine_folder, table_folder, work_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.delta import open_delta
from tasks.training.splits import load_split
from tests.benchmarks.classification import make_model
from tests.harness.commands import FMNIST, user_environment
from tests.harness.tables import check_committed_batches

FILES, LOOSE, BROKEN = 16, 300, 5
"""Number of Parquet files of 10,000 images each, of loose image files, and of loose files that aren't images."""
IMAGES = FILES * 10_000 + 2 * LOOSE + BROKEN
VICTIMS = ("actor", "actor", "raylet", "command", "command")


@dataclass(frozen=True)
class Place:
    """A folder with images and a store that holds a model."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"FMNIST_STORE": f"{self.folder}/store", "FMNIST_STATE_DIR": f"{self.folder}/state"}

    def command(self, table: str) -> list[str | Path]:
        return [FMNIST, "classify", f"{self.folder}/images", "--table", table, "--json"]

    @property
    def store(self) -> ObjectStore:
        return open_store(f"file://{self.folder}/store")

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        """Read the table: image, class, confidence, and the reason if the image is quarantined."""
        predictions = open_delta(self.store, table_folder(table))
        quarantine = open_delta(self.store, quarantine_folder(table))
        assert predictions is not None
        assert quarantine is not None
        with duckdb.connect() as duck:
            duck.register("predictions", predictions.dataset())
            duck.register("quarantine", quarantine.dataset())
            return duck.execute(
                "SELECT image, predicted_class, confidence, '' AS reason FROM predictions "
                "UNION ALL SELECT image, -1, 0.0, reason FROM quarantine ORDER BY image"
            ).fetchall()


@pytest.fixture(scope="module")
def place(data_store: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("killed")
    store = open_store(data_store)
    dataset = read_dataset(store, "fashion-mnist")
    assert dataset is not None
    pixels = load_split(store, dataset, "test").images
    encoded = [encode_png(image) for image in pixels]
    images = folder / "images"
    (images / "loose").mkdir(parents=True)
    pq.write_table(pa.table({"image": encoded}), images / "00.parquet", row_group_size=5000)
    for number in range(1, FILES):
        shutil.copy(images / "00.parquet", images / f"{number:02d}.parquet")
    with tarfile.open(images / "some.tar", "w") as tar:
        for number, data in enumerate(encoded[:LOOSE]):
            path = images / "loose" / f"{number}.png"
            path.write_bytes(data)
            tar.add(path, f"{number}.png")
    for number in range(BROKEN):
        (images / "loose" / f"broken-{number}.png").write_bytes(encoded[0][: 20 + number])
    make_model(f"file://{folder}/store")
    return Place(folder)


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> list[tuple[Any, ...]]:
    """Classify without a kill, and return the table's rows."""
    subprocess.run(
        place.command("undisturbed"),
        env=user_environment() | place.environment,
        check=True,
        capture_output=True,
        timeout=800,
    )
    rows = place.rows("undisturbed")
    assert len(rows) == len({row[0] for row in rows}) == IMAGES
    return rows


@pytest.mark.rounds(full=50, short=3)
def test_running_a_killed_command_again_completes_the_table(place: Place, undisturbed: list[Any], seed: int) -> None:
    chance = random.Random(seed)
    victim = chance.choice(VICTIMS)
    table = f"killed-{seed}"
    exit_codes = []
    with running(place, table) as process:
        read_until(process, chance.choice(["Starting Ray", "Starting the classifiers", "Classifying"]))
        time.sleep(chance.uniform(0, 2))
        kill(process, victim)
        exit_codes.append(process.wait(timeout=800))
    for _ in range(3):
        again = subprocess.run(  # noqa: PLW1510 (its exit code is checked below)
            place.command(table),
            env=user_environment() | place.environment,
            capture_output=True,
            text=True,
            timeout=800,
        )
        exit_codes.append(again.returncode)
        assert "Traceback" not in again.stderr
        if again.returncode == 0:
            break
    print(f"seed {seed}: {victim} killed, exit codes {exit_codes}")

    assert exit_codes[-1] == 0
    assert place.rows(table) == undisturbed
    check_committed_batches(place.store, table)
    for folder in (table_folder(table), quarantine_folder(table), books_folder(table), work_folder(table)):
        shutil.rmtree(place.folder / "store" / folder)


@contextmanager
def running(place: Place, table: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command. Kill it and its children at the end of the block."""
    process = subprocess.Popen(
        place.command(table),
        env=user_environment() | place.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()
        for child in left:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def read_until(process: "subprocess.Popen[str]", stage: str) -> None:
    """Wait until the command prints a line that contains `stage`, or ends."""
    assert process.stderr is not None
    for line in process.stderr:
        if stage in line:
            return


def kill(process: "subprocess.Popen[str]", victim: str) -> None:
    """Send SIGKILL to the command itself, or to one of its actors or its raylet if that is running."""
    if victim == "command":
        process.kill()
        return
    name = "raylet" if victim == "raylet" else "ray::ShardClassifier"
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if child.name().startswith(name) or (child.cmdline() or [""])[0].startswith(name):
                    child.kill()
                    return
