# ruff: noqa: S311 (random numbers here protect no secret)
"""One contract for every kind of object store: a local folder, moto and Ceph's gateway."""

import hashlib
import json
import math
import multiprocessing
import os
import pickle
import random
import socket
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from infra.errors import RequestError
from infra.storage.checkpoints import (
    CheckpointCorrupt,
    CheckpointNotFound,
    list_checkpoints,
    list_runs,
    read_files,
    read_record,
    write_checkpoint,
)
from infra.storage.keys import checkpoint_folder, quarantine_folder, table_folder
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import (
    DeltaLocation,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    StoreMisconfigured,
    StoreUnavailable,
    SwapConflict,
    explained_delta,
    open_store,
)
from infra.storage.object_store.s3_configuration import CHECKSUM_VARIABLE, s3_connection, worker_environment
from infra.storage.tables.books import list_tables, read_books
from infra.storage.tables.planning.batches import NumberedBatch, NumberTaken, list_batches, take_number
from infra.storage.tables.planning.plan import PLAN_SCHEMA, BatchPlan, ShardInputs, find_plan, plan_files, write_plan
from infra.storage.tables.records import damaged_shards, read_records
from tests.harness.s3_server import EACH_SERVER, Exchange, S3Server, faulty_proxy, free_port, isolate_aws, on_ceph
from tests.unit.infra.storage.tables.finished_shards import commit, finish_batch, finish_shard, images, rows_of
from tests.unit.tasks.classification.image_inputs import as_nobody

pytest_plugins = ["tests.harness.gateways"]

LARGE = 20 * 2**20
"""Bytes of an object that is uploaded in several parts."""

# Forking children from a server that has already imported what they need saves a second per child.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


@pytest.fixture(params=["file", *EACH_SERVER])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store, in a folder and on each server."""
    if request.param == "file":
        return open_store((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue(request.param)
    server.use(monkeypatch)
    return server.new_store()


@pytest.fixture
def file_store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "store").as_uri())


# --- Processes ---


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in many processes at the same moment. Its first argument is the number of the process."""
    barrier, results = PROCESSES.Barrier(count), PROCESSES.Queue()
    children = [
        PROCESSES.Process(target=_child, args=(dict(os.environ), barrier, results, function, number, *arguments))
        for number in range(count)
    ]
    for child in children:
        child.start()
    outcomes = [results.get(timeout=200) for _ in children]
    for child in children:
        child.join()
    failures = [failure for failure, _ in outcomes if failure]
    assert not failures, failures[0]
    return [result for _, result in outcomes]


def _child(environment: dict[str, str], barrier: Any, results: Any, function: Any, *arguments: Any) -> None:
    os.environ.update(environment)
    try:
        barrier.wait(timeout=150)
        results.put((None, function(*arguments)))
    except BaseException:  # noqa: BLE001 (the parent raises it again)
        results.put((traceback.format_exc(), None))


def create_all(number: int, root: str, keys: list[str]) -> list[str]:
    """Try to create every key, in random order. Return the keys that this call created."""
    store = open_store(root)
    created = []
    for key in random.Random(number).sample(keys, len(keys)):
        try:
            store.create(key, f"{number}".encode())
        except ObjectExists:
            continue
        created.append(key)
    return created


def increment(number: int, root: str, times: int) -> int:
    """Add 1 to a counter `times` times by compare-and-set. Return how often another writer came first."""
    store = open_store(root)
    conflicts = 0
    for _ in range(times):
        while True:
            data, seen = store.read_with_etag("counter.json")
            counted = json.loads(data)
            try:
                store.swap(
                    "counter.json", json.dumps({"by": number, "count": counted["count"] + 1}).encode(), seen=seen
                )
            except SwapConflict:
                conflicts += 1
                time.sleep(random.random() * 0.02)
            else:
                break
    return conflicts


def register(number: int, root: str) -> int:
    version = ModelRegistry(open_store(root)).register(
        run_id=f"run-{number}",
        epoch=1,
        weights_sha256="0" * 64,
        metrics={"test_accuracy": 0.9},
        parameters={},
        data_version="tests",
    )
    return version.version


# --- Whole or absent ---


@pytest.mark.parametrize("size", [0, 1, LARGE])
def test_published_object_reads_back(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)

    with store.publish("folder/object") as stream:
        stream.write(data)

    assert store.read("folder/object") == data
    found = store.stat("folder/object")
    assert found is not None
    assert found.size == size
    assert [listed.size for listed in store.list("folder/")] == [size]


def test_object_is_absent_while_it_is_being_written(store: ObjectStore) -> None:
    with store.publish("object") as stream:
        stream.write(os.urandom(LARGE))
        stream.flush()
        assert store.stat("object") is None
        assert list(store.list("")) == []


@pytest.mark.parametrize("size", [10, LARGE])
def test_aborted_publish_leaves_nothing(store: ObjectStore, size: int) -> None:
    def fail_midway() -> None:
        with store.publish("folder/object") as stream:
            stream.write(os.urandom(size))
            raise KeyError("the writer failed")

    with pytest.raises(KeyError, match="the writer failed"):
        fail_midway()

    assert store.stat("folder/object") is None
    assert list(store.list("")) == []
    assert list(store.list_folders("")) == []


def test_aborted_publish_keeps_the_existing_object(store: ObjectStore) -> None:
    store.create("object", b"first")

    def fail_midway() -> None:
        with store.publish("object") as stream:
            stream.write(b"second")
            raise KeyError

    with pytest.raises(KeyError):
        fail_midway()

    assert store.read("object") == b"first"


# --- Reading, replacing, deleting ---


def test_error_for_a_missing_object_names_its_uri(store: ObjectStore) -> None:
    store.create("folder/object", b"data")

    for key in ("nothing", "folder", "folder/object/below"):
        assert store.stat(key) is None
        with pytest.raises(ObjectNotFound) as error:
            store.read(key)
        assert store.uri(key) in str(error.value)


def test_etag_changes_with_the_bytes(store: ObjectStore) -> None:
    seen = set()
    for number in range(5):
        with store.publish("object") as stream:
            stream.write(b"%d" % number)
        found = store.stat("object")
        assert found is not None
        assert [found] == list(store.list(""))
        seen.add(found.etag)

    assert len(seen) == 5


def test_deleted_object_is_gone_and_can_be_deleted_again(store: ObjectStore) -> None:
    store.create("folder/object", b"data")

    for key in ("folder", "nothing", "folder/object", "folder/object", "folder/object/below"):
        store.delete(key)

    assert store.stat("folder/object") is None
    assert list(store.list("")) == []
    assert list(store.list_folders("")) == []


def test_pyarrow_reads_parquet_from_the_store(store: ObjectStore) -> None:
    table = pa.table({"number": list(range(200_000)), "text": ["x" * 50] * 200_000})
    with store.publish("table.parquet") as stream:
        pq.write_table(table, stream, compression="none")

    filesystem, path = store.arrow("table.parquet")

    assert pq.read_table(path, filesystem=filesystem).equals(table)


def test_pickled_store_works_and_holds_no_secret(store: ObjectStore) -> None:
    store.create("object", b"data")

    pickled = pickle.dumps(store)

    assert pickle.loads(pickled).read("object") == b"data"  # noqa: S301 (pickled above)
    assert os.environ.get("AWS_SECRET_ACCESS_KEY", "none").encode() not in pickled


def test_working_store_passes_its_checks(store: ObjectStore) -> None:
    store.check_writable()
    store.check_conditional_writes()

    assert list(store.list("")) == []
    assert list(store.list_folders("")) == []


# --- Create ---


def test_create_never_replaces(store: ObjectStore) -> None:
    store.create("object", b"first")

    with pytest.raises(ObjectExists) as error:
        store.create("object", b"second")
    assert store.uri("object") in str(error.value)
    with pytest.raises(ObjectExists):
        store.create("object", b"first")

    assert store.read("object") == b"first"


def test_only_one_of_many_threads_creates_an_object(store: ObjectStore) -> None:
    keys = [f"contested/{number}" for number in range(10)]

    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(lambda number: create_all(number, store.root, keys), range(8)))

    assert sorted(key for own in created for key in own) == keys
    assert all(store.read(key) == b"%d" % number for number, own in enumerate(created) for key in own)


def test_only_one_of_many_processes_creates_an_object(store: ObjectStore) -> None:
    keys = [f"contested/{number}" for number in range(10)]

    created = in_processes(6, create_all, store.root, keys)

    assert sorted(key for own in created for key in own) == keys


# --- Compare-and-set ---


def test_swap_replaces_only_the_version_that_was_seen(store: ObjectStore) -> None:
    store.swap("object", b"first", seen=None)
    data, first = store.read_with_etag("object")
    assert data == b"first"
    store.swap("object", b"second", seen=first)

    for seen in (first, None, "0" * 32):
        with pytest.raises(SwapConflict) as error:
            store.swap("object", b"third", seen=seen)
        assert store.uri("object") in str(error.value)
    with pytest.raises(SwapConflict):
        store.swap("nothing/here", b"third", seen=first)

    assert store.read("object") == b"second"
    assert [found.key for found in store.list("")] == ["object"]


def test_only_one_of_many_threads_swaps_in_each_round(store: ObjectStore) -> None:
    store.create("alias", b"start")

    def swap(number: int, round_number: int, seen: str, together: threading.Barrier) -> int | None:
        together.wait(timeout=60)
        try:
            store.swap("alias", f"{round_number} {number}".encode(), seen=seen)
        except SwapConflict:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        for round_number in range(10):
            together, seen = threading.Barrier(8), store.read_with_etag("alias")[1]
            swaps = [threads.submit(swap, number, round_number, seen, together) for number in range(8)]
            winners = [number for swapped in swaps if (number := swapped.result()) is not None]
            assert len(winners) == 1
            assert store.read("alias") == f"{round_number} {winners[0]}".encode()


def test_counter_swapped_by_many_processes_loses_no_count(store: ObjectStore) -> None:
    store.create("counter.json", b'{"count": 0}')

    in_processes(6, increment, store.root, 5)

    assert json.loads(store.read("counter.json"))["count"] == 30


# --- Listing ---


def test_listing_of_many_pages_is_complete_and_in_order(store: ObjectStore) -> None:
    keys = [f"many/{number:04d}/object" for number in range(1100)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.create(key, key.encode()), keys))

    assert [found.key for found in store.list("many/")] == keys
    assert list(store.list_folders("many/")) == [key.split("/")[1] for key in keys]


def test_listing_sorts_unusual_names_by_their_bytes(store: ObjectStore) -> None:
    names = ["a", "a b+c%20&=", "a-b/x", "a.b", "a/x", "a/y", "a0/x", "b#1?q", "é/x", "日本"]
    keys = [f"{'folder/' if number else ''}{name}" for number in (0, 1) for name in names if name != "a"]
    for key in keys:
        store.create(key, key.encode())

    assert [found.key for found in store.list("")] == sorted(keys, key=str.encode)
    assert [found.key for found in store.list("folder/a/")] == ["folder/a/x", "folder/a/y"]
    assert list(store.list_folders("folder/")) == ["a-b", "a", "a0", "é"]
    assert list(store.list("nothing/")) == []
    assert list(store.list_folders("nothing/")) == []
    assert all(store.read(key) == key.encode() for key in keys)


def test_listing_after_a_key_skips_it_and_all_before_it(store: ObjectStore) -> None:
    keys = ["a-b/x", "a.b", "a/x", "a/x/y/z", "a/y", "a0/x", "b#1?q", "é/x", "日本"]
    for key in (f"folder/{key}" for key in keys if key != "a/x"):
        store.create(key, key.encode())
    present = [found.key for found in store.list("folder/")]

    for after in [
        "",
        "folder/",
        "folder/a",
        "folder/a/",
        "folder/a/x/y/",
        "folder/a0",
        "folder/z",
        "g",
        "日",
        *present,
    ]:
        expected = [key for key in present if key.encode() > after.encode()]
        assert [found.key for found in store.list("folder/", after=after)] == expected
    assert [found.key for found in store.list("folder/a/", after="folder/a/x/y/z")] == ["folder/a/y"]
    assert next(found.key for found in store.list("", after="folder/b")) == "folder/b#1?q"


def test_listing_after_a_key_asks_the_server_for_no_earlier_one(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bytes] = []

    def note(exchange: Exchange) -> None:
        if exchange.method == "GET" and "list-type=2" in exchange.path:
            answers.append(exchange.answer_body)

    with faulty_proxy(moto_server, after=note) as server:
        server.use(monkeypatch)
        store = server.new_store()
        for number in range(3):
            store.create(f"folder/{number}", b"")

        assert [found.key for found in store.list("folder/", after="folder/1")] == ["folder/2"]

    [answer] = answers
    assert b"folder/2" in answer
    assert b"folder/0" not in answer


# --- Delta tables ---

ROWS = pa.table({"number": [1, 2, 3]})


def append_rows(location: DeltaLocation, rows: pa.Table = ROWS) -> None:
    write_deltalake(location.uri, rows, mode="append", storage_options=location.storage_options)


def count_rows(location: DeltaLocation) -> int:
    table = DeltaTable(location.uri, storage_options=location.storage_options)
    return int(table.to_pyarrow_dataset().count_rows())


def test_delta_table_is_written_and_read_where_the_store_says(store: ObjectStore) -> None:
    append_rows(store.delta("predictions/table/"))
    append_rows(store.delta("predictions/table/"))

    assert count_rows(store.delta("predictions/table/")) == 6
    assert store.stat("predictions/table/_delta_log/00000000000000000001.json") is not None


def test_location_of_a_delta_table_shows_no_secret(store: ObjectStore) -> None:
    location = store.delta("predictions/table/")

    for secret in location.storage_options.values():
        assert secret not in repr(location).replace(location.uri, "")


def test_commit_is_synced_on_every_store(store: ObjectStore) -> None:
    for version in range(2):
        append_rows(store.delta("predictions/table/"))
        store.sync_delta("predictions/table/", version)

    assert count_rows(store.delta("predictions/table/")) == 6


def test_commit_in_a_folder_is_synced_with_the_folders_that_name_it(
    file_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_rows(file_store.delta("predictions/table/"))
    synced: list[Path] = []
    fsync = os.fsync

    def note_and_sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_and_sync)
    file_store.sync_delta("predictions/table/", 0)

    table = tmp_path / "store" / "predictions" / "table"
    log = table / "_delta_log"
    [part] = table.glob("*.parquet")
    assert {part, log / f"{0:020}.json", log, table, table.parent, tmp_path / "store"} == set(synced)
    assert synced.index(part) < synced.index(log)


def test_sync_of_a_missing_table_does_nothing(store: ObjectStore) -> None:
    store.sync_delta("predictions/table/", 0)

    assert list(store.list("")) == []


@pytest.mark.parametrize("name", ["a b", "50%", "a#b", "a?b", "日本 é", "a&b=c;d'\"", "a:b", "%zz"])
def test_delta_table_in_a_folder_of_any_name_is_readable(tmp_path: Path, name: str) -> None:
    store = open_store(f"file://{tmp_path / name}")

    for _ in range(2):
        append_rows(store.delta("predictions/table/"))

    assert count_rows(store.delta("predictions/table/")) == 6
    assert (tmp_path / name / "predictions" / "table" / "_delta_log" / f"{1:020}.json").exists()


@pytest.mark.parametrize("name", ["a%20b", "[a", "a]", "a^b", "a|b", "a\\b"])
def test_folder_that_delta_cannot_open_is_refused_by_name(tmp_path: Path, name: str) -> None:
    store = open_store(f"file://{tmp_path / name}")

    with pytest.raises(StoreMisconfigured) as error:
        store.delta("predictions/table/")

    assert str(tmp_path / name) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_reading_a_missing_delta_table_creates_no_folder(file_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(TableNotFoundError), explained_delta(file_store):
        count_rows(file_store.delta("predictions/table/"))

    assert list(tmp_path.rglob("*")) == []


def test_missing_delta_table_keeps_the_error_of_delta(store: ObjectStore) -> None:
    with pytest.raises(TableNotFoundError), explained_delta(store):
        count_rows(store.delta("predictions/table/"))


def test_lost_race_keeps_the_error_of_delta(store: ObjectStore) -> None:
    location = store.delta("predictions/table/")
    append_rows(location)
    once = CommitProperties(app_transactions=[Transaction("batch", 1)])
    first, second = (DeltaTable(location.uri, storage_options=location.storage_options) for _ in range(2))
    write_deltalake(first, ROWS, mode="append", commit_properties=once)

    with pytest.raises(CommitFailedError), explained_delta(store):
        write_deltalake(second, ROWS, mode="append", commit_properties=once)

    assert count_rows(location) == 6


def test_missing_part_of_a_delta_table_is_named(store: ObjectStore) -> None:
    location = store.delta("predictions/table/")
    append_rows(location)
    table = DeltaTable(location.uri, storage_options=location.storage_options)
    [part] = [found.key for found in store.list("predictions/table/") if found.key.endswith(".parquet")]
    store.delete(part)

    with pytest.raises(ObjectNotFound) as error, explained_delta(store):
        table.to_pyarrow_table()

    assert Path(part).name in str(error.value)


def test_error_of_other_code_is_not_taken_for_one_of_the_store(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), explained_delta(store):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(SwapConflict), explained_delta(store):
        raise SwapConflict
    with pytest.raises(TimeoutError), explained_delta(store):
        raise TimeoutError("timed out")


def test_folder_without_permission_is_named(file_store: ObjectStore, tmp_path: Path) -> None:
    append_rows(file_store.delta("predictions/table/"))
    log = tmp_path / "store" / "predictions" / "table" / "_delta_log"
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    log.chmod(0o500)

    with as_nobody(), pytest.raises(StoreMisconfigured) as error, explained_delta(file_store):
        append_rows(file_store.delta("predictions/table/"))

    assert file_store.root in str(error.value)


# --- Names ---


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "..",
        "../outside",
        "a/../../outside",
        "a/./b",
        "a//b",
        "a/",
        "a\\b",
        "a\nb",
        "a\0b",
        ".hidden",
        "a/.hidden",
        "s3://other/key",
        "file:///etc/passwd",
        "\ud800",
    ],
)
def test_unsafe_key_is_refused(store: ObjectStore, key: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: store.stat(key),
        lambda: store.read(key),
        lambda: store.create(key, b""),
        lambda: store.swap(key, b"", seen=None),
        lambda: store.publish(key).__enter__(),
        lambda: store.delete(key),
        lambda: store.arrow(key),
        lambda: list(store.list(f"{key}/")),
        lambda: list(store.list_folders(f"{key}/")),
    ]

    for use in uses:
        with pytest.raises(RequestError) as error:
            use()
        assert repr(key) in str(error.value)


def test_prefix_without_a_trailing_slash_is_refused(store: ObjectStore) -> None:
    with pytest.raises(RequestError, match="'fold'"):
        list(store.list("fold"))


@pytest.mark.parametrize("root", ["s3://", "s3:///prefix", "s3://bucket/../other", "s3://key:canary@bucket", "ftp://x"])
def test_invalid_root_is_refused_without_repeating_a_secret(root: str) -> None:
    with pytest.raises(RequestError, match="FMNIST_STORE") as error:
        open_store(root)

    assert "canary" not in str(error.value)


def test_symlink_out_of_the_root_is_not_followed(file_store: ObjectStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "store"
    root.mkdir()
    (root / "file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)

    for key in ("file", "folder/secret", "folder/new"):
        for use in (file_store.stat, file_store.read, file_store.arrow, file_store.delete):
            with pytest.raises(StoreMisconfigured, match="link"):
                use(key)
        with pytest.raises(StoreMisconfigured, match="link"):
            file_store.create(key, b"new")
        with pytest.raises(StoreMisconfigured, match="link"), file_store.publish(key):
            pass

    assert list(file_store.list("")) == []
    assert list(file_store.list_folders("")) == []
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_symlink_in_place_of_a_lock_is_not_followed(file_store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    file_store.create("alias", b"first")
    seen = file_store.read_with_etag("alias")[1]
    (tmp_path / "store" / ".alias.lock").symlink_to(tmp_path / "precious")

    with pytest.raises(StoreMisconfigured, match=r"\.alias\.lock"):
        file_store.swap("alias", b"second", seen=seen)

    assert (tmp_path / "precious").read_bytes() == b"precious"


# --- What is built on it ---


def _write_epoch(store: ObjectStore, epoch: int, weights: bytes) -> None:
    write_checkpoint(
        store,
        run_id="run",
        epoch=epoch,
        files={"model.safetensors": weights, "trainer.pt": b"state"},
        metrics={"loss": 0.5},
        parameters={"epochs": 2},
        data_version="tests",
    )


def test_incomplete_checkpoint_is_not_listed_and_can_be_written_again(store: ObjectStore) -> None:
    weights = os.urandom(100_000)
    _write_epoch(store, 1, weights)
    store.create("runs/run/checkpoints/epoch-0002/model.safetensors", b"half")

    assert list_runs(store) == ["run"]
    assert list_checkpoints(store, "run") == [1]
    assert read_files(store, read_record(store, "run", 1)) == {"model.safetensors": weights, "trainer.pt": b"state"}
    with pytest.raises(CheckpointNotFound) as error:
        read_record(store, "run", 2)
    assert store.root in str(error.value)

    _write_epoch(store, 2, weights)

    assert list_checkpoints(store, "run") == [1, 2]
    assert read_files(store, read_record(store, "run", 2))["model.safetensors"] == weights


def test_concurrent_attempts_at_one_epoch_make_one_valid_checkpoint(store: ObjectStore) -> None:
    attempts = [bytes([number]) * 100_000 for number in range(4)]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda weights: _write_epoch(store, 1, weights), [*attempts, *attempts]))

    assert read_files(store, read_record(store, "run", 1))["model.safetensors"] in attempts


def test_nan_and_infinite_metrics_read_back(store: ObjectStore) -> None:
    write_checkpoint(
        store,
        run_id="run",
        epoch=1,
        files={"model.safetensors": b"weights"},
        metrics={"loss": float("nan"), "accuracy": float("inf")},
        parameters={},
        data_version="tests",
    )

    metrics = read_record(store, "run", 1).metrics
    assert math.isnan(metrics["loss"])
    assert metrics["accuracy"] == math.inf


def test_damaged_checkpoint_is_refused(store: ObjectStore) -> None:
    _write_epoch(store, 1, b"weights")
    key = f"{checkpoint_folder('run', 1)}/model.safetensors"
    with store.publish(key) as stream:
        stream.write(b"wEights")

    with pytest.raises(CheckpointCorrupt) as error:
        read_files(store, read_record(store, "run", 1))
    for digest in (hashlib.sha256(b"wEights").hexdigest(), hashlib.sha256(b"weights").hexdigest()):
        assert digest[:12] in str(error.value)


@pytest.mark.parametrize(
    "key", ["runs/other/model.safetensors", "runs/run/checkpoints/epoch-0001/..", "/etc/passwd", "s3://other/object"]
)
def test_checkpoint_record_that_names_a_foreign_file_is_refused(store: ObjectStore, key: str) -> None:
    _write_epoch(store, 1, b"weights")
    record = json.loads(store.read("runs/run/checkpoints/epoch-0001/checkpoint.json"))
    record["files"][0]["key"] = key
    with store.publish("runs/run/checkpoints/epoch-0001/checkpoint.json") as stream:
        stream.write(json.dumps(record).encode())

    with pytest.raises(CheckpointCorrupt) as error:
        read_record(store, "run", 1)
    assert store.uri("runs/run/checkpoints/epoch-0001/checkpoint.json") in str(error.value)


def test_record_of_another_checkpoint_is_refused(store: ObjectStore) -> None:
    _write_epoch(store, 1, b"weights")
    store.create(
        "runs/run/checkpoints/epoch-0002/checkpoint.json",
        store.read("runs/run/checkpoints/epoch-0001/checkpoint.json"),
    )

    with pytest.raises(CheckpointCorrupt) as error:
        read_record(store, "run", 2)
    assert store.uri("runs/run/checkpoints/epoch-0002/checkpoint.json") in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["file", "ceph_or_moto"], indirect=True)
def test_fifty_processes_register_fifty_versions(store: ObjectStore) -> None:
    numbers = in_processes(50, register, store.root)

    registry = ModelRegistry(store)
    assert sorted(numbers) == registry.versions() == list(range(1, 51))
    assert len({registry.version(number).run_id for number in numbers}) == 50


def test_alias_ends_at_the_version_it_was_last_moved_to(store: ObjectStore) -> None:
    registry = ModelRegistry(store)
    for number in range(3):
        register(number, store.root)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda version: registry.point("champion", version), [1, 2, 3]))
    moved = registry.point("champion", 2)

    assert registry.resolve("champion").version == 2
    assert moved.previous in (1, 2, 3)
    assert registry.alias("candidate") is None


PLANNED = pa.table(
    [[0, 1], ["file:///a", "file:///b"], ["f", "g"], ["parquet"] * 2, [0, 0], [3, 2], [0, 0], [9, 9], [None, None]],
    schema=PLAN_SCHEMA,
)


def write_planned(store: ObjectStore, scratch: Path, number: int = 1) -> BatchPlan:
    return write_plan(
        store,
        table="t",
        number=number,
        model_version="1",
        options={"invert": "auto"},
        inputs=PLANNED.to_batches(),
        superseded=0,
        scratch=scratch,
    )


def test_plan_written_twice_is_the_same_and_reads_back_by_shard(store: ObjectStore, tmp_path: Path) -> None:
    plan = write_planned(store, tmp_path)

    assert write_planned(store, tmp_path) == plan == find_plan(store, "t", plan.batch)
    inputs = ShardInputs(store, plan)
    assert pa.concat_tables([inputs.of(0), inputs.of(1)]).equals(PLANNED)


def test_plan_is_copied_to_a_local_parquet_file(store: ObjectStore, tmp_path: Path) -> None:
    plan = write_planned(store, tmp_path)

    for _ in range(2):
        [path] = plan_files(store, "t", [plan.batch], tmp_path)
        assert pq.read_table(path, partitioning=None).equals(PLANNED)


def test_batch_goes_from_plan_to_commit(store: ObjectStore, tmp_path: Path) -> None:
    plan = write_planned(store, tmp_path)
    take_number(store, "t", numbered(plan))
    assert (read_records(store, plan), read_books(store, "t")) == ({}, [])

    finish_batch(store, plan)
    books = commit(store, plan)

    assert commit(store, plan, seconds=3.0) == books
    assert (list_tables(store), read_books(store, "t")) == (["t"], [books])
    assert rows_of(store, table_folder("t")) == [*images(2, first=10), *images(1, first=13)]
    assert rows_of(store, quarantine_folder("t")) == [*images(1, first=12), *images(1, first=14)]


def numbered(plan: BatchPlan) -> NumberedBatch:
    return NumberedBatch(number=plan.number, batch=plan.batch, model_version=plan.model_version, options=plan.options)


def test_first_record_of_a_shard_counts(store: ObjectStore, tmp_path: Path) -> None:
    plan = write_planned(store, tmp_path)

    first = finish_shard(store, plan, 0, predicted=images(3), quarantined=[])
    second = finish_shard(store, plan, 0, predicted=[], quarantined=images(3))

    assert second == first
    assert read_records(store, plan) == {0: first}


def test_parts_are_intact_by_their_etags(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = write_planned(store, tmp_path)
    records = finish_batch(store, plan)

    monkeypatch.setattr(store, "arrow", None)  # so that no part can be read

    assert damaged_shards(store, plan, records.values()) == {}


def test_part_that_was_replaced_is_damaged(store: ObjectStore, tmp_path: Path) -> None:
    plan = write_planned(store, tmp_path)
    records = finish_batch(store, plan)
    [part] = records[1].parts
    key = f"{table_folder('t')}/{part.name}"
    data = store.read(key)

    with store.publish(key) as stream:
        stream.write(data[:20] + b"\xff" + data[21:])

    assert damaged_shards(store, plan, records.values()) == {1: key}


@pytest.mark.parametrize("size", [100, LARGE])
def test_writer_learns_the_etag_of_its_object(store: ObjectStore, size: int) -> None:
    with store.publish("object") as stream:
        stream.write(bytes(size))

    found = store.stat("object")
    assert found is not None
    assert stream.etag == found.etag


def take_any_number(index: int, root: str) -> int:
    """Take the next free number, and return it."""
    store = open_store(root)
    for _ in range(1000):
        number = max((entry.number for entry in list_batches(store, "t")), default=0) + 1
        try:
            take_number(store, "t", NumberedBatch(number=number, batch=f"{index}", model_version="1", options={}))
        except NumberTaken:
            time.sleep(random.random() * 0.02)
        else:
            return number
    raise AssertionError(f"batch {index} never got a number")


def test_ten_processes_take_ten_numbers(store: ObjectStore) -> None:
    numbers = in_processes(10, take_any_number, store.root)

    assert sorted(numbers) == list(range(1, 11))
    assert {entry.batch for entry in list_batches(store, "t")} == {f"{index}" for index in range(10)}


# --- S3: a server that ignores conditions ---


def test_server_that_ignores_conditions_is_refused(rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    rclone_server.use(monkeypatch)
    store = rclone_server.new_store()
    store.check_writable()
    uses: list[Callable[[], None]] = [
        store.check_conditional_writes,
        lambda: store.swap("models/m/aliases/champion.json", b"1", seen=None),
        lambda: store.create("models/m/versions/00000001.json", b"1"),
    ]

    for use in uses:
        with pytest.raises(StoreMisconfigured, match="If-None-Match") as error:
            use()
        assert rclone_server.endpoint in str(error.value)
    assert list(store.list("")) == []


def test_check_of_conditional_writes_is_free_the_second_time(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []
    with faulty_proxy(s3_server, before=lambda exchange: requests.append(exchange.path)) as server:
        server.use(monkeypatch)
        root = server.new_store().root
        open_store(root).check_conditional_writes()
        before = len(requests)

        for _ in range(100):
            open_store(root).check_conditional_writes()

        assert 0 < before == len(requests)


# --- S3: faults in transit ---


def _first(times: int, method: str, path_end: str, change: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """Apply a fault to the first requests of a kind."""
    left = [times]

    def fault(exchange: Exchange) -> None:
        if exchange.method == method and exchange.path.endswith(path_end) and left[0]:
            left[0] -= 1
            change(exchange)

    return fault


def _lose(exchange: Exchange) -> None:
    exchange.lose_answer = True


def _cut(exchange: Exchange) -> None:
    exchange.cut_answer_at = 1000


def _damage(exchange: Exchange) -> None:
    exchange.body = exchange.body[:-1] + bytes([exchange.body[-1] ^ 1])


def test_create_succeeds_if_its_answer_is_lost(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_proxy(s3_server, after=_first(2, "PUT", "/object", _lose)) as server:
        server.use(monkeypatch)
        store = server.new_store()

        store.create("object", b"first")

        assert store.read("object") == b"first"
        with pytest.raises(ObjectExists):
            store.create("object", b"first")


def test_lost_answers_never_exhaust_the_retries(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = set()

    def lose_first_of_each(exchange: Exchange) -> None:
        if exchange.method == "PUT" and exchange.path not in lost:
            lost.add(exchange.path)
            exchange.lose_answer = True

    with faulty_proxy(moto_server, after=lose_first_of_each) as server:
        server.use(monkeypatch)
        store = server.new_store()

        for number in range(60):
            store.create(f"objects/{number:02d}", b"data")

        assert len(list(store.list("objects/"))) == 60
        assert len(lost) == 61  # including the scratch object that tests conditional writes


def test_swap_succeeds_if_its_answer_is_lost(s3_store: ObjectStore, s3_server: S3Server) -> None:
    s3_store.create("alias", b"first")
    seen = s3_store.read_with_etag("alias")[1]
    with (
        faulty_proxy(s3_server, after=_first(2, "PUT", "/alias", _lose)) as server,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        server.use(monkeypatch)

        s3_store.swap("alias", b"second", seen=seen)

        assert s3_store.read("alias") == b"second"
        with pytest.raises(SwapConflict):
            s3_store.swap("alias", b"second", seen=seen)


def test_truncated_answer_is_requested_again(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(100_000)
    with faulty_proxy(s3_server, after=_first(3, "GET", "/object", _cut)) as server:
        server.use(monkeypatch)
        store = server.new_store()
        store.create("object", data)

        assert store.read("object") == data


@on_ceph
@pytest.mark.parametrize("size", [1000, LARGE])
def test_body_corrupted_in_transit_is_sent_again(
    ceph_gateway: S3Server, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    data = os.urandom(size)
    with faulty_proxy(ceph_gateway, before=_first(1, "PUT", "/object", _damage)) as server:
        server.use(monkeypatch)
        store = server.new_store()

        with store.publish("object") as stream:
            stream.write(data)

        assert store.read("object") == data


# --- S3: errors ---


@pytest.fixture
def within_seconds() -> Iterator[None]:
    """Fail a test that takes 20 seconds or more."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 20


def _error(use: Callable[[], object], error_class: type[Exception] = StoreMisconfigured) -> str:
    """The message of the error that a use of the store raises."""
    with pytest.raises(error_class) as raised:
        use()
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.usefixtures("within_seconds")
def test_unreachable_server_is_named_within_seconds(moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

    message = _error(moto_store.check_writable, StoreUnavailable)

    assert moto_store.root in message
    assert endpoint in message


@pytest.mark.usefixtures("within_seconds")
def test_missing_bucket_is_named_by_every_use(s3_store: ObjectStore, s3_server: S3Server) -> None:
    store = open_store("s3://no-such-bucket/prefix")
    uses: list[Callable[[], object]] = [
        store.check_writable,
        store.check_conditional_writes,
        lambda: store.stat("key"),
        lambda: store.read("key"),
        lambda: store.create("key", b""),
        lambda: store.swap("key", b"", seen=None),
        lambda: list(store.list("")),
        lambda: list(store.list_folders("")),
        lambda: store.delete("key"),
    ]

    for use in uses:
        message = _error(use)
        assert "no-such-bucket" in message
        assert s3_server.endpoint in message


@on_ceph
@pytest.mark.usefixtures("within_seconds")
@pytest.mark.parametrize(
    ("variable", "cause"), [("AWS_SECRET_ACCESS_KEY", "secret key"), ("AWS_ACCESS_KEY_ID", "access key")]
)
def test_rejected_credentials_are_reported_without_a_secret(
    ceph_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, variable: str, cause: str
) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv(variable, "canary")

    assert cause in _error(ceph_store.check_writable)
    for use in (ceph_store.check_writable, lambda: ceph_store.stat("key")):
        message = _error(use)
        assert ceph_store.root in message
        assert os.environ["AWS_ENDPOINT_URL"] in message
        assert secret not in message
        assert "canary" not in message


@pytest.mark.usefixtures("within_seconds")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "AWS_ACCESS_KEY_ID"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
        ({"AWS_ENDPOINT_URL": "", "AWS_REGION": ""}, "AWS_REGION"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_incomplete_settings_are_named_without_a_secret(
    moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], expected: str
) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    for name, value in settings.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)

    for use in (moto_store.check_writable, lambda: moto_store.stat("key"), lambda: moto_store.arrow("key")):
        message = _error(use)
        assert expected in message
        assert secret not in message


@pytest.mark.usefixtures("within_seconds")
def test_failing_credential_process_is_reported_without_its_output(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _use_credential_process(moto_server, monkeypatch, tmp_path, "print('canary', file=sys.stderr); sys.exit(1)")

    message = _error(moto_server.new_store().check_writable)

    assert "CredentialRetrievalError" in message
    assert "canary" not in message


def delta_uses(store: ObjectStore) -> list[Callable[[], object]]:
    """Open, and create, a Delta table. A server's answers differ between the two."""

    def use(work: Callable[[DeltaLocation], object]) -> None:
        with explained_delta(store):
            work(store.delta("table/"))

    return [lambda: use(count_rows), lambda: use(append_rows)]


@on_ceph
@pytest.mark.usefixtures("within_seconds")
@pytest.mark.parametrize(
    ("variable", "cause"), [("AWS_SECRET_ACCESS_KEY", "secret key"), ("AWS_ACCESS_KEY_ID", "access key")]
)
def test_rejected_credentials_of_a_delta_table_are_reported_without_a_secret(
    ceph_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, variable: str, cause: str
) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv(variable, "canary")

    for use in delta_uses(ceph_store):
        message = _error(use)
        assert cause in message
        assert ceph_store.root in message
        assert os.environ["AWS_ENDPOINT_URL"] in message
        assert secret not in message
        assert "canary" not in message


@pytest.mark.usefixtures("within_seconds")
def test_unreachable_server_of_a_delta_table_is_named_within_seconds(
    moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

    message = _error(delta_uses(moto_store)[0], StoreUnavailable)

    assert moto_store.root in message
    assert endpoint in message
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in message


@pytest.mark.usefixtures("within_seconds")
def test_missing_bucket_of_a_delta_table_is_named(s3_store: ObjectStore, s3_server: S3Server) -> None:
    for use in delta_uses(open_store("s3://no-such-bucket/prefix")):
        message = _error(use)
        assert "no-such-bucket" in message
        assert s3_server.endpoint in message


@pytest.mark.usefixtures("within_seconds")
@pytest.mark.parametrize(
    ("status", "error_class"), [(403, StoreMisconfigured), (500, StoreUnavailable), (503, StoreUnavailable)]
)
def test_refused_commit_is_reported_by_its_answer(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, status: int, error_class: type[Exception]
) -> None:
    def refuse(exchange: Exchange) -> None:
        if exchange.method == "PUT" and exchange.path.endswith("1.json"):
            exchange.answer_instead = status

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    with faulty_proxy(moto_server, before=refuse) as server:
        server.use(monkeypatch)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
        store = server.new_store()
        append_rows(store.delta("table/"))

        message = _error(delta_uses(store)[1], error_class)

    assert store.root in message
    assert server.endpoint in message


@pytest.mark.usefixtures("within_seconds")
def test_server_that_does_not_answer_a_commit_is_reported(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(exchange: Exchange) -> None:
        if exchange.method == "PUT" and exchange.path.endswith("1.json"):
            exchange.hang_seconds = 3

    with faulty_proxy(moto_server, before=hang) as server:
        server.use(monkeypatch)
        monkeypatch.setenv("FMNIST_S3_TIMEOUT_SECONDS", "0.5")
        store = server.new_store()
        append_rows(store.delta("table/"))

        message = _error(delta_uses(store)[1], StoreUnavailable)

    assert server.endpoint in message


def test_commit_whose_answer_is_lost_is_found_by_its_transaction(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """delta-rs sends the commit again, finds it taken, and reports a lost race. Its caller must look."""
    with faulty_proxy(s3_server, after=_first(1, "PUT", "1.json", _lose)) as server:
        server.use(monkeypatch)
        store = server.new_store()
        location = store.delta("table/")
        append_rows(location)
        table = DeltaTable(location.uri, storage_options=location.storage_options)
        once = CommitProperties(app_transactions=[Transaction("batch", 1)])

        with pytest.raises(CommitFailedError), explained_delta(store):
            write_deltalake(table, ROWS, mode="append", commit_properties=once)

        found = DeltaTable(location.uri, storage_options=location.storage_options)
        assert found.transaction_version("batch") == 1
        assert count_rows(location) == 6


# --- S3: one configuration ---


def _use_credential_process(server: S3Server, monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Take all settings from a profile, and the credentials from its program, as single sign-on does."""
    isolate_aws(monkeypatch)
    (folder / "credentials.py").write_text(f"import json, os, sys\n{textwrap.dedent(program)}")
    (folder / "config").write_text(
        f"[profile tests]\nregion = eu-tests-1\nendpoint_url = {server.endpoint}\n"
        f"credential_process = {sys.executable} {folder / 'credentials.py'}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_PROFILE", "tests")


@on_ceph
def test_refreshed_credentials_reach_boto3_and_pyarrow(
    ceph_gateway: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = tmp_path / "answer.json"

    def answer_with(secret: str) -> None:
        # Expires so soon that every use refreshes it.
        expiration = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        key_id = ceph_gateway.environment["AWS_ACCESS_KEY_ID"]
        answer.write_text(
            json.dumps({"Version": 1, "AccessKeyId": key_id, "SecretAccessKey": secret, "Expiration": expiration})
        )

    _use_credential_process(ceph_gateway, monkeypatch, tmp_path, f"print(open({str(answer)!r}).read())")
    answer_with(ceph_gateway.environment["AWS_SECRET_ACCESS_KEY"])
    store = ceph_gateway.new_store()
    store.create("object", b"data")
    first, path = store.arrow("object")
    assert first.open_input_file(path).read() == store.read("object") == b"data"
    assert store.arrow("object")[0] is first

    answer_with("another")

    assert store.arrow("object")[0] is not first
    with pytest.raises(OSError, match=r"SIGNATURE|403|ACCESS_DENIED"):
        store.arrow("object")[0].open_input_file(path)
    assert "secret key" in _error(lambda: store.read("object"))


def test_configuration_comes_from_the_aws_settings(moto_store: ObjectStore, moto_server: S3Server) -> None:
    connection = s3_connection()

    assert connection is s3_connection()
    assert connection.endpoint == moto_server.endpoint
    assert connection.credentials_source == "env"
    assert connection.configuration.addressing_style == "path"
    assert connection.configuration.max_attempts == 8
    assert os.environ[CHECKSUM_VARIABLE] == connection.configuration.checksum_mode == "when_required"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in repr(vars(connection.configuration))


def test_delta_gets_the_same_settings(
    moto_store: ObjectStore, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text("")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("FMNIST_S3_TIMEOUT_SECONDS", "1.5")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))

    location = moto_store.delta("predictions/table/")

    assert location.uri == f"{moto_store.root}/predictions/table"
    for name, value in {
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "aws_session_token": "token",
        "aws_region": "us-east-1",
        "aws_endpoint": moto_server.endpoint,
        "aws_allow_http": "true",
        "aws_virtual_hosted_style_request": "false",
        "aws_conditional_put": "etag",
        "connect_timeout": "5s",
        "timeout": "4500ms",
        "max_retries": "2",
        "proxy_url": "http://proxy.test:3128",
    }.items():
        assert location.storage_options[name] == value
    assert "certificate_path" not in location.storage_options  # http needs none


def test_delta_reaches_aws_by_the_host_of_the_bucket(moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")

    options = open_store("s3://bucket/prefix").delta("").storage_options
    dotted = open_store("s3://dotted.bucket").delta("").storage_options

    assert options["aws_endpoint"] == "https://bucket.s3.eu-central-1.amazonaws.com"
    assert options["aws_virtual_hosted_style_request"] == "true"
    assert options["aws_allow_http"] == "false"
    assert dotted["aws_endpoint"] == "https://s3.eu-central-1.amazonaws.com"
    assert dotted["aws_virtual_hosted_style_request"] == "false"


def test_environment_of_delta_does_not_override_the_settings(
    s3_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """delta-rs also reads options from the environment, under names that other programs use."""
    for name in ("ENDPOINT", "BUCKET", "REGION", "ACCESS_KEY_ID", "TIMEOUT", "AWS_SKIP_SIGNATURE", "PROXY_EXCLUDES"):
        monkeypatch.setenv(name, "true")

    append_rows(s3_store.delta("table/"))

    assert count_rows(s3_store.delta("table/")) == 3


def test_workers_get_the_settings_but_no_secret(moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "ml")

    environment = worker_environment()

    assert environment["AWS_ENDPOINT_URL"] == os.environ["AWS_ENDPOINT_URL"]
    assert environment["AWS_PROFILE"] == "ml"
    assert environment[CHECKSUM_VARIABLE] == "when_required"
    assert not any("KEY" in name or "TOKEN" in name for name in environment)


def test_forked_process_opens_its_own_connection(moto_store: ObjectStore) -> None:
    moto_store.create("object", b"data")
    parent = id(s3_connection())
    ours, theirs = socket.socketpair()

    child = os.fork()
    if child == 0:
        try:
            theirs.sendall(b"%d" % (s3_connection() is not None and id(s3_connection()) != parent))
            theirs.sendall(moto_store.read("object"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)

    assert ours.recv(100) == b"1data"
    ours.close()
    theirs.close()
