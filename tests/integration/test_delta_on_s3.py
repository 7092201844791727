"""Concurrent commits of delta-rs to one table: in a folder, on moto and on Ceph."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from infra.storage.object_store import ObjectStore, StoreMisconfigured, explained_delta, open_store
from tests.harness.s3_server import EACH_SERVER, Exchange, S3Server, faulty_proxy
from tests.integration.test_object_store_contract import in_processes

pytest_plugins = ["tests.harness.gateways"]

TABLE = "predictions/table/"
SAME, OTHERS = 8, 8
"""Processes that commit the same batch, and processes that commit one of their own."""


@pytest.fixture(params=["file", *EACH_SERVER])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store, in a folder and on each server."""
    if request.param == "file":
        return open_store((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue(request.param)
    server.use(monkeypatch)
    return server.new_store()


def opened(store: ObjectStore) -> DeltaTable:
    location = store.delta(TABLE)
    return DeltaTable(location.uri, storage_options=location.storage_options)


def add_rows(table: DeltaTable, batch: str) -> None:
    once = CommitProperties(app_transactions=[Transaction(batch, 1)])
    write_deltalake(table, pa.table({"batch": [batch]}), mode="append", commit_properties=once)


def create_table(store: ObjectStore) -> None:
    location = store.delta(TABLE)
    write_deltalake(location.uri, pa.table({"batch": ["created"]}), storage_options=location.storage_options)


def batches(store: ObjectStore) -> list[str]:
    return sorted(opened(store).to_pyarrow_table()["batch"].to_pylist())


def commit(number: int, root: str) -> bool:
    """Commit a batch unless it is committed. Return whether this call did."""
    store = open_store(root)
    batch = "same" if number < SAME else f"other-{number}"
    for _ in range(100):
        with explained_delta(store):
            table = opened(store)
            if table.transaction_version(batch) is not None:
                return False
            try:
                add_rows(table, batch)
            except CommitFailedError:
                continue
            return True
    raise AssertionError(f"{batch} was never committed")


def test_batches_committed_by_many_processes_at_once_are_there_once(store: ObjectStore) -> None:
    create_table(store)

    committed = in_processes(SAME + OTHERS, commit, store.root)

    assert sum(committed) == 1 + OTHERS
    others = [f"other-{number}" for number in range(SAME, SAME + OTHERS)]
    assert batches(store) == sorted(["created", "same", *others])
    assert opened(store).version() == 1 + OTHERS


def test_server_that_ignores_conditions_loses_a_commit_and_is_refused(
    rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken: list[str] = []

    def overtake(exchange: Exchange) -> None:
        if exchange.method == "PUT" and exchange.path.endswith("1.json") and not overtaken:
            overtaken.append(exchange.path)
            add_rows(opened(store), "lost")

    with faulty_proxy(rclone_server, before=overtake) as server:
        server.use(monkeypatch)
        store = server.new_store()
        create_table(store)
        add_rows(opened(store), "kept")
        assert overtaken
        assert [opened(store).transaction_version(batch) for batch in ("lost", "kept")] == [None, 1]

        with pytest.raises(StoreMisconfigured) as error:
            store.check_conditional_writes()
        assert server.endpoint in str(error.value)


def test_commit_overtaken_on_its_way_is_repeated_after_the_other(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken: list[str] = []

    def overtake(exchange: Exchange) -> None:
        if exchange.method == "PUT" and exchange.path.endswith("1.json") and not overtaken:
            overtaken.append(exchange.path)
            add_rows(opened(store), "first")

    with faulty_proxy(s3_server, before=overtake) as server:
        server.use(monkeypatch)
        store = server.new_store()
        create_table(store)
        add_rows(opened(store), "second")

        assert overtaken
        assert batches(store) == ["created", "first", "second"]
        assert opened(store).version() == 2
