"""Let many processes commit at once, and let none commit to a server that ignores conditional writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from fmnist_model.images.decode import encode_png
from fmnist_model.predictions import prediction_schema, quarantine_schema
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore, StoreMisconfigured, open_store
from infra.storage.tables.books import read_books
from tests.chaos.committers import commit_share
from tests.chaos.one_process import classify_here, commit_here, plan_here, register_model
from tests.harness.processes import in_processes
from tests.harness.s3_server import S3Server
from tests.harness.tables import check_committed_batches, images_by_batch

pytest_plugins = ["tests.harness.gateways"]

TABLE = "table"
SAME, OTHERS = 8, 8
"""Processes that commit the same batch, and processes that commit one of their own."""


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store, in a folder and on S3."""
    if request.param == "file":
        return open_store((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue("ceph_or_moto")
    server.use(monkeypatch)
    return server.new_store()


def test_batches_committed_by_many_processes_at_once_are_there_once(store: ObjectStore, images: Path) -> None:
    model = register_model(store)
    plans = plan_here(store, images, TABLE, model).plans
    for number in range(OTHERS):
        (images / f"other-{number}.png").write_bytes(encode_png(np.full((28, 28), number, np.uint8)))
        plans = plan_here(store, images, TABLE, model).plans
    for plan in plans:
        classify_here(store, plan, model)

    shares = [plans[0]] * SAME + plans[1:]
    schemas = [prediction_schema(), quarantine_schema()]
    committed = in_processes(SAME + OTHERS, commit_share, store.root, shares, schemas, model)

    assert sorted(committed) == [(plan.batch, plan.planned) for plan in shares]
    assert [entry.batch for entry in read_books(store, TABLE)] == [plan.batch for plan in plans]
    assert sum(map(len, images_by_batch(store, table_folder(TABLE)).values())) == 4 + OTHERS
    assert sum(map(len, images_by_batch(store, quarantine_folder(TABLE)).values())) == 1
    check_committed_batches(store, TABLE)


def test_server_that_ignores_conditions_is_refused_before_any_work(
    rclone_server: S3Server, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = open_store((tmp_path / "store").as_uri())
    model = register_model(honest)
    rclone_server.use(monkeypatch)
    store = rclone_server.new_store()

    with pytest.raises(StoreMisconfigured) as error:
        plan_here(store, images, TABLE, model)

    assert rclone_server.endpoint in str(error.value)
    assert list(store.list("")) == []


def test_commit_whose_answer_is_lost_is_found(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store((tmp_path / "store").as_uri())
    model = register_model(store)
    [plan] = plan_here(store, images, TABLE, model).plans
    real = DeltaTable.create_write_transaction

    def commit_and_fail(table: DeltaTable, *arguments: Any, **more: Any) -> None:
        real(table, *arguments, **more)
        raise DeltaError("the snapshot after the commit can't be read")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", commit_and_fail)

    books = commit_here(store, classify_here(store, plan, model), model)

    assert (books.predicted, books.quarantined) == (4, 1)
    check_committed_batches(store, TABLE)
