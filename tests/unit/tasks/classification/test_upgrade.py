"""An upgrade keeps every row of an old table, whenever it is interrupted, and old and new code exclude each other."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import numpy as np
import polars as pl
import pytest
import torch

from fmnist_model.network import NeuralNetwork, save_weights
from infra.errors import JobStopped
from infra.storage.checkpoints import write_checkpoint
from infra.storage.format import NewerFormat, OldTable, check_format, check_table, claim_table
from infra.storage.keys import FORMAT, old_log_key, quarantine_folder, table_folder
from infra.storage.model_registry import ModelRegistry, ModelVersion
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.object_store.local import LocalObjectStore
from infra.storage.tables.books import read_books
from infra.storage.tables.delta import DeltaSnapshot, open_delta
from infra.storage.tables.records import read_records
from tasks.classification import upgrade
from tasks.classification.actor import ShardClassifier, ShardTask
from tasks.classification.classify import ClassifiedBatch
from tasks.classification.commit import commit_classified
from tasks.classification.options import ReadOptions
from tasks.classification.plan import PlannedWork, plan_inputs
from tasks.classification.upgrade import upgrade_store
from tests.harness import old_layout
from tests.unit.tasks.classification.image_inputs import png

pytest_plugins = ["tests.harness.gateways"]

NAMES = ["t-shirt #1.jpg", "50%25.png", "what?.png", "größe 36.png", "bad #2.png", "f.png", "g#row=1.png", "bad.png"]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Image files with names that need percent-encoding. The `bad` ones are not images."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / name for name in NAMES]
    for number, path in enumerate(paths):
        path.write_bytes(b"no" if path.name.startswith("bad") else png(np.full((28, 28), 20 * number, np.uint8)))
    return paths


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "store").as_uri())


def test_upgrade_keeps_every_row(store: ObjectStore, images: list[Path]) -> None:
    build(store, images)
    [upgraded] = upgrade_all(store)
    assert (upgraded.batches, upgraded.unfinished, upgraded.predicted, upgraded.quarantined) == (3, 0, 7, 2)
    check_rows(store)


def test_upgrade_on_s3_keeps_every_row(moto_store: ObjectStore, images: list[Path]) -> None:
    build(moto_store, images)
    upgrade_all(moto_store)
    check_rows(moto_store)


def test_polars_and_duckdb_read_an_upgraded_table(store: ObjectStore, images: list[Path]) -> None:
    build(store, images)
    upgrade_all(store)
    snapshot = open_delta(store, table_folder("mine"))
    assert snapshot is not None
    with duckdb.connect() as connection:
        connection.register("predictions", snapshot.dataset())
        counts = connection.execute("SELECT count(*), sum(predicted_class) FROM predictions").fetchone()
    assert counts == (7, 21)
    found = pl.scan_delta(store.delta("predictions/mine/").uri, use_pyarrow=True).collect()
    assert len(found) == 7
    assert found["probabilities"].list.len().unique().to_list() == [10]
    assert set(found["batch"]) == {"a" * 16, "c" * 16}


def test_repeated_upgrade_changes_nothing(store: ObjectStore, images: list[Path]) -> None:
    build(store, images)
    upgrade_all(store)
    before = list(store.list(""))
    assert upgrade_all(store) == []
    assert list(store.list("")) == before


def test_old_parts_stay_as_they_are(store: ObjectStore, images: list[Path]) -> None:
    build(store, images)
    before = {stat.key: stat for stat in store.list("predictions/")}
    upgrade_all(store)
    after = {stat.key: stat for stat in store.list("predictions/")}
    assert {key for key, stat in before.items() if after[key] != stat} == {old_log_key("mine")}


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True])
def test_upgrade_killed_at_any_write_can_be_repeated(tmp_path: Path, images: list[Path], done: bool) -> None:
    for write in range(1, 100):
        store = open_store((tmp_path / f"store-{write}").as_uri())
        build(store, images)
        try:
            with killed_at(write, done=done):
                upgrade_all(store)
        except Killed:
            upgrade_all(store)
            check_rows(store)
        else:
            assert write > 10
            return
    pytest.fail("The upgrade has no end.")


def test_two_upgrades_at_once_take_each_batch_over_once(store: ObjectStore, images: list[Path]) -> None:
    build(store, images)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: upgrade_all(store), range(2)))
    check_rows(store)


def test_batch_that_is_committed_during_the_upgrade_is_taken_over(store: ObjectStore, images: list[Path]) -> None:
    table = build(store, images)
    real = upgrade.old.finish_table
    left = [1]

    def meanwhile(*arguments: Any) -> None:
        if left:
            left.pop()
            extra = images[0].with_name("extra.png")
            extra.write_bytes(png(np.zeros((28, 28), np.uint8)))
            table.add("d" * 16, [[extra]])
        real(*arguments)

    with mock.patch.object(upgrade.old, "finish_table", meanwhile):
        upgrade_all(store)
    assert [books.batch[0] for books in read_books(store, "mine")] == ["a", "b", "c", "d"]


def test_planning_after_the_upgrade_finds_everything_done(store: ObjectStore, images: list[Path]) -> None:
    table = build(store, images)
    upgrade_all(store)
    work = plan(store, table.model, images, "after")
    assert (work.plans, work.done.images) == ([], 8)


def test_changed_file_supersedes_its_old_rows(store: ObjectStore, images: list[Path]) -> None:
    table = build(store, images)
    upgrade_all(store)
    assert [books.superseded for books in read_books(store, "mine")] == [0, 0, 1]
    os.utime(images[1], ns=(1, 1))
    [planned] = plan(store, table.model, images, "changed").plans
    assert (planned.number, planned.planned, planned.superseded) == (4, 1, 1)


def test_unfinished_batch_is_finished_by_the_next_run(store: ObjectStore, images: list[Path]) -> None:
    model = register_model(store)
    table = old_layout.OldTable(store, "mine", model)
    table.add("a" * 16, [images[:5], images[5:]], finished=1, committed=False)
    images[1].unlink()  # the shard that is finished doesn't need its inputs
    [upgraded] = upgrade_all(store)
    assert (upgraded.batches, upgraded.unfinished) == (0, 1)
    [planned] = plan(store, model, images, "finish").plans
    records = read_records(store, planned)
    assert {shard: (record.predicted, record.quarantined) for shard, record in records.items()} == {0: (4, 1)}
    actor = ShardClassifier(store.root, planned, model)
    records[1] = actor.work(ShardTask(1))
    books = commit_classified(store, model, ClassifiedBatch(planned, records, 1.0))
    assert (books.predicted, books.quarantined) == (6, 2)
    assert len(rows_of(store, table_folder("mine"))) == 6
    assert len(rows_of(store, quarantine_folder("mine"))) == 2


def test_old_table_is_refused_until_it_is_upgraded(store: ObjectStore, images: list[Path]) -> None:
    table = build(store, images)
    check_format(store)
    with pytest.raises(OldTable, match="fmnist store upgrade"):
        check_table(store, "mine")
    with pytest.raises(OldTable, match="fmnist store upgrade"):
        plan(store, table.model, images, "old")
    upgrade_all(store)
    check_table(store, "mine")


def test_old_log_that_appears_while_planning_stops_the_planner(store: ObjectStore, images: list[Path]) -> None:
    build(store, images)
    with pytest.raises(OldTable, match="mine"):
        claim_table(store, "mine")


def test_first_batch_leaves_a_log_that_old_code_cannot_parse(store: ObjectStore, images: list[Path]) -> None:
    plan(store, register_model(store), images, "new")
    content = json.loads(store.read(old_log_key("mine")))
    assert "batches" not in content
    assert json.loads(store.read(FORMAT))["format"] == content["format"] == 2


def test_store_with_another_old_table_gets_no_format(store: ObjectStore, images: list[Path]) -> None:
    table = build(store, images)
    plan(store, table.model, images, "other", table="another")
    assert store.stat(FORMAT) is None


def test_newer_format_is_refused(store: ObjectStore, images: list[Path]) -> None:
    model = register_model(store)
    store.create(FORMAT, b'{"format": 3}')
    with pytest.raises(NewerFormat, match="3"):
        plan(store, model, images, "newer")
    with pytest.raises(NewerFormat, match="3"):
        upgrade_all(store)


def test_log_that_cannot_be_parsed_is_not_taken_for_a_marker(store: ObjectStore, images: list[Path]) -> None:
    model = register_model(store)
    store.create(old_log_key("mine"), b'{"batches": [')
    with pytest.raises(JobStopped, match=r"_batches\.json"):
        plan(store, model, images, "broken")
    with pytest.raises(JobStopped, match=r"_batches\.json"):
        upgrade_all(store)


def build(store: ObjectStore, images: list[Path]) -> old_layout.OldTable:
    """Write an old table: three batches of which the second has no predictions, and the third a changed file."""
    table = old_layout.OldTable(store, "mine", register_model(store))
    table.add("a" * 16, [images[:3], images[3:6]])
    table.add("b" * 16, [images[7:]])
    os.utime(images[0], ns=(7, 7))
    table.add("c" * 16, [[images[0], images[6]]])
    return table


def register_model(store: ObjectStore) -> ModelVersion:
    torch.manual_seed(0)
    files = {"model.safetensors": save_weights(NeuralNetwork())}
    checkpoint = write_checkpoint(
        store, run_id="run-1", epoch=1, files=files, metrics={}, parameters={}, data_version="tests"
    )
    return ModelRegistry(store).register(
        run_id="run-1",
        epoch=1,
        weights_sha256=checkpoint.files[0].sha256,
        metrics={},
        parameters={},
        data_version="tests",
    )


def upgrade_all(store: ObjectStore) -> list[upgrade.UpgradedTable]:
    return upgrade_store(store, lambda _: None)


def plan(store: ObjectStore, model: ModelVersion, images: list[Path], name: str, *, table: str = "mine") -> PlannedWork:
    folder = images[0].parent
    scratch = folder.parent / f"scratch-{name}"
    scratch.mkdir()
    return plan_inputs(store, [str(folder)], table=table, model=model, options=ReadOptions(), scratch=scratch)


def rows_of(store: ObjectStore, folder: str) -> list[dict[str, Any]]:
    snapshot = open_delta(store, folder)
    assert snapshot is not None
    rows: list[dict[str, Any]] = snapshot.dataset().to_table().to_pylist()
    return rows


def check_rows(store: ObjectStore) -> None:
    """Check that the table holds exactly what `build` wrote."""
    predicted = [(row["batch"][0], Path(row["image"]).name) for row in rows_of(store, table_folder("mine"))]
    first = [("a", name) for name in NAMES[:6] if not name.startswith("bad")]
    assert sorted(predicted) == sorted([*first, ("c", NAMES[0]), ("c", NAMES[6])])
    quarantined = rows_of(store, quarantine_folder("mine"))
    found = sorted((row["batch"][0], Path(row["image"]).name, row["file_version"]) for row in quarantined)
    assert found == [("a", "bad %232.png", 1), ("b", "bad.png", 2)]
    assert {(row["reason_kind"], row["retryable"], row["model_version"]) for row in quarantined} == {
        ("not an image", False, "1")
    }
    books = read_books(store, "mine")
    counts = [(entry.number, entry.batch[0], entry.predicted, entry.quarantined) for entry in books]
    assert counts == [(1, "a", 5, 1), (2, "b", 0, 1), (3, "c", 2, 0)]
    assert [sum(entry.summary.class_counts) for entry in books] == [5, 0, 2]
    assert [(reason.kind, reason.images) for reason in books[0].reasons] == [("not an image", 1)]
    check_table(store, "mine")
    assert json.loads(store.read(FORMAT))["format"] == 2


@contextmanager
def killed_at(write: int, *, done: bool) -> Iterator[None]:
    """Raise `Killed` before or after the n-th write or commit. Fewer writes raise nothing."""
    left = [write]

    def whole(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            last = left[0] == 0
            if last and not done:
                raise Killed
            result = real(*arguments, **more)
            if last:
                raise Killed
            return result

        return call

    def stream(real: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def call(*arguments: Any) -> Iterator[Any]:
            left[0] -= 1
            last = left[0] == 0
            with real(*arguments) as opened:
                yield opened
                if last and not done:
                    raise Killed
            if last:
                raise Killed

        return call

    patched = [
        (LocalObjectStore, "create", whole),
        (LocalObjectStore, "swap", whole),
        (LocalObjectStore, "publish", stream),
        (DeltaSnapshot, "add", whole),
        (upgrade, "ensure_delta", whole),
        (upgrade, "write_books", whole),
    ]
    with ExitStack() as stack:
        for owner, name, wrap in patched:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
        yield
