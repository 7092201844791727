"""Let runs race for one batch, and check that each image stays in the one row that was committed."""

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from infra.storage.keys import parts_folder, quarantine_folder, table_folder
from infra.storage.model_registry import ModelRegistry, ModelVersion
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import read_books
from infra.storage.tables.commit import PartsDamaged
from infra.storage.tables.planning.plan import BatchPlan
from infra.storage.tables.records import ShardRecord
from tasks.classification.actor import ShardClassifier, ShardTask
from tests.chaos.held_actor import STEPS, HeldActor, steps_can_be_held
from tests.chaos.one_process import classify_here, commit_here, plan_here, register_model
from tests.harness.commands import descendants, fmnist, started
from tests.harness.s3_server import Exchange, S3Server, faulty_proxy
from tests.harness.tables import (
    all_records,
    check_committed_batches,
    digests_of_parts,
    images_by_batch,
    read_predictions,
)
from tests.unit.tasks.classification.image_inputs import encode_idx

pytest_plugins = ["tests.harness.gateways"]

TABLE = "table"
MANY = 160_000
"""Images of a part of 6 MB, which is sent to S3 in two pieces."""
FILES, ROWS = 16, 10_000
"""Number of IDX files that the commands classify, and of images in each."""


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "store").as_uri())


def planned(store: ObjectStore, images: Path) -> tuple[BatchPlan, ModelVersion]:
    """Plan one batch of all images, which is one shard."""
    model = register_model(store)
    [plan] = plan_here(store, images, TABLE, model).plans
    assert plan.shards == 1
    return plan, model


def contents(store: ObjectStore) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, str]]:
    """Return what no late writer may change: the images of both tables, and the digests of the committed parts."""
    predicted, quarantined = table_folder(TABLE), quarantine_folder(TABLE)
    return images_by_batch(store, predicted), images_by_batch(store, quarantined), digests_of_parts(store, TABLE)


def parts_written(store: ObjectStore, batch: str) -> list[str]:
    """Return the keys of all parts of a batch, including those of attempts that don't count."""
    folders = [parts_folder(folder, batch) for folder in (table_folder(TABLE), quarantine_folder(TABLE))]
    return [stat.key for folder in folders for stat in store.list(f"{folder}/")]


# --- A worker that is held while others finish ---


@pytest.mark.parametrize("step", STEPS)
def test_worker_that_finishes_late_changes_no_committed_row(store: ObjectStore, images: Path, step: str) -> None:
    plan, model = planned(store, images)
    with steps_can_be_held():
        late = HeldActor(store, plan, model, ShardTask(0), step=step)
        batch = classify_here(store, plan, model)
        books = commit_here(store, batch, model)
        committed = contents(store)
        images.rename(images.with_name("archived"))

        record = late.finish()

    assert record == batch.records[0]
    assert commit_here(store, replace(batch, records={0: record}), model) == books
    assert contents(store) == committed
    assert len(parts_written(store, plan.batch)) > len(committed[2])  # the late worker did write
    check_committed_batches(store, TABLE)


@pytest.mark.parametrize("winner", ["the run that saw the file", "the run that did not"])
def test_image_with_different_outcomes_in_two_runs_is_in_one_row(store: ObjectStore, images: Path, winner: str) -> None:
    plan, model = planned(store, images)
    with steps_can_be_held():
        saw = HeldActor(store, plan, model, ShardTask(0), step="before its record")
        (images / "2.png").unlink()
        did_not = HeldActor(store, plan, model, ShardTask(0), step="before its record")
        first, second = (saw, did_not) if winner == "the run that saw the file" else (did_not, saw)
        records = [first.finish(), second.finish()]

    assert records[0] == records[1]
    batch = classify_here(store, plan, model)
    first_books, second_books = [commit_here(store, replace(batch, records={0: record}), model) for record in records]
    assert first_books == second_books
    check_committed_batches(store, TABLE)
    predicted, quarantined, _ = contents(store)
    image = f"{images.as_uri()}/2.png"
    assert (image in predicted[plan.batch]) == (first is saw)
    assert (image in quarantined[plan.batch]) == (first is did_not)


def test_overtaken_multipart_upload_leaves_two_good_parts(
    moto_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "many-idx3-ubyte"
    pixels = np.random.default_rng(0).integers(0, 256, (MANY, 28, 28), dtype=np.uint8)
    images.write_bytes(encode_idx(pixels))
    reached, resumed = threading.Event(), threading.Event()

    def hold_first_completion(exchange: Exchange) -> None:
        if exchange.method == "POST" and "uploadId=" in exchange.path and not reached.is_set():
            reached.set()
            assert resumed.wait(60)

    with faulty_proxy(moto_server, before=hold_first_completion) as server:
        server.use(monkeypatch)
        monkeypatch.setattr("infra.storage.object_store.s3.PART_BYTES", 5 * 2**20)
        monkeypatch.setattr("infra.storage.tables.planning.plan.SMALLEST_SHARD", 1e9)
        store = server.new_store()
        plan, model = planned(store, images)
        late_records: list[ShardRecord] = []
        late = threading.Thread(
            target=lambda: late_records.append(ShardClassifier(store.root, plan, model).work(ShardTask(0)))
        )
        late.start()
        assert reached.wait(60)
        batch = classify_here(store, plan, model)
        resumed.set()
        late.join(60)
        commit_here(store, batch, model)

        assert late_records == [batch.records[0]]
        written = parts_written(store, plan.batch)
        assert len(written) == 2
        assert f"{table_folder(TABLE)}/{batch.records[0].parts[0].name}" in written
        for key in written:
            filesystem, path = store.arrow(key)
            assert pq.read_table(path, filesystem=filesystem, columns=["image"], partitioning=None).num_rows == MANY
        check_committed_batches(store, TABLE)


# --- Parts that are lost or damaged before the commit ---


def damage(path: Path, *, lost: bool) -> None:
    """Lose a file, or replace its second half with zeros."""
    data = path.read_bytes()
    path.unlink()
    if not lost:
        path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "damaged"])
@pytest.mark.parametrize("kind", ["parts", "quarantine"])
def test_bad_part_is_noticed_at_the_commit_and_replaced(
    store: ObjectStore, tmp_path: Path, images: Path, kind: str, lost: bool
) -> None:
    plan, model = planned(store, images)
    batch = classify_here(store, plan, model)
    [part] = getattr(batch.records[0], kind)
    key = f"{table_folder(TABLE) if kind == 'parts' else quarantine_folder(TABLE)}/{part.name}"
    damage(tmp_path / "store" / key, lost=lost)

    with pytest.raises(PartsDamaged) as error:
        commit_here(store, batch, model)
    assert store.uri(key) in str(error.value)
    assert read_books(store, TABLE) == []

    again = classify_here(store, plan, model)
    commit_here(store, again, model)
    assert [record.number for record in all_records(store, TABLE, plan.batch)] == [0, 1]
    assert again.records[0].number == 1
    check_committed_batches(store, TABLE)


def test_books_follow_a_part_that_was_replaced_after_they_were_written(
    store: ObjectStore, tmp_path: Path, images: Path
) -> None:
    plan, model = planned(store, images)
    batch = classify_here(store, plan, model)
    with (
        mock.patch("infra.storage.tables.delta.DeltaSnapshot.add", _killed_before(table_folder(TABLE))),
        pytest.raises(KeyboardInterrupt),
    ):
        commit_here(store, batch, model)
    (images / "1.png").unlink()
    damage(tmp_path / "store" / table_folder(TABLE) / batch.records[0].parts[0].name, lost=True)

    books = commit_here(store, classify_here(store, plan, model), model)

    assert (books.predicted, books.quarantined) == (3, 2)
    check_committed_batches(store, TABLE)


def _killed_before(folder: str) -> Any:
    from infra.storage.tables.delta import DeltaSnapshot

    real = DeltaSnapshot.add

    def add(snapshot: DeltaSnapshot, batches: Any) -> bool:
        if snapshot._folder == folder:
            raise KeyboardInterrupt
        return real(snapshot, batches)

    return add


# --- Commands whose actors are suspended ---


@dataclass(frozen=True)
class Place:
    """A folder with images and a store that holds a model."""

    folder: Path

    @property
    def store(self) -> ObjectStore:
        return open_store((self.folder / "store").as_uri())

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def environment(self, run: str) -> dict[str, str]:
        """Return the settings of a run. Each has its own state folder, as on a machine of its own."""
        return {"FMNIST_STORE": f"{self.folder}/store", "FMNIST_STATE_DIR": f"{self.folder}/state-{run}"}

    def contents(self, table: str) -> tuple[list[tuple[Any, ...]], dict[str, str]]:
        """Return the table's rows, and the digests of its parts."""
        rows = read_predictions(self.store, table, ["image", "predicted_class", "confidence", "batch"])
        return sorted(zip(*(column.to_pylist() for column in rows.columns), strict=True)), digests_of_parts(
            self.store, table
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 28, 28), dtype=np.uint8)
    first = place.images / "00-idx3-ubyte"
    first.write_bytes(encode_idx(pixels))
    for number in range(1, FILES):
        (place.images / f"{number:02d}-idx3-ubyte").hardlink_to(first)
    model = register_model(place.store)
    ModelRegistry(place.store).point("champion", model.version)
    return place


def classifiers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the actors of a command."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in descendants(process):
            with suppress(psutil.NoSuchProcess):
                if (child.cmdline() or [""])[0].startswith("ray::ShardClassifier"):
                    found.append(child)
    return found


def test_suspended_actor_changes_no_row_that_another_command_commits(place: Place) -> None:
    arguments = ("classify", str(place.images), "--table", TABLE)
    with started(*arguments, wait_for="Classifying into", **place.environment("first")) as first:
        suspended = classifiers(first)[0]
        suspended.suspend()
        try:
            second = fmnist(*arguments, **place.environment("second"))
            assert second.returncode == 0, second.stderr
            committed = place.contents(TABLE)
            place.images.rename(place.folder / "archived")
        finally:
            suspended.resume()
        _, printed = first.communicate(timeout=400)
        assert first.returncode == 0, printed
    assert place.contents(TABLE) == committed
    assert len(committed[0]) == FILES * ROWS
    [books] = read_books(place.store, TABLE)
    assert len(parts_written(place.store, books.batch)) > books.shards  # the suspended actor did write
    check_committed_batches(place.store, TABLE)


@pytest.mark.rounds(full=20, short=1)
def test_actors_suspended_at_random_lose_and_repeat_no_image(place: Place, seed: int) -> None:
    chance = random.Random(seed)
    arguments = ("classify", str(place.images), "--table", TABLE)
    pauses = 0
    with (
        started(*arguments, wait_for="Starting the classifiers", **place.environment("first")) as first,
        started(*arguments, wait_for="Starting", **place.environment("second")) as second,
    ):
        for command in (first, second):
            threading.Thread(target=command.stderr.read, daemon=True).start()
        while first.poll() is None or second.poll() is None:
            actors = [*classifiers(first), *classifiers(second)]
            if not actors:
                time.sleep(0.2)
                continue
            with suspended(chance.choice(actors)):
                time.sleep(chance.uniform(0, 3))
            pauses += 1
            time.sleep(chance.uniform(0, 0.3))
    print(f"seed {seed}: {pauses} pauses, exit codes {first.returncode} and {second.returncode}")
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(place.contents(TABLE)[0]) == FILES * ROWS
    check_committed_batches(place.store, TABLE)


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """Suspend a process during the block, if it still runs."""
    with suppress(psutil.NoSuchProcess):
        process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()
