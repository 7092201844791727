"""Store commands, multipart uploads and inputs on S3: in a folder, and on moto, Ceph and rclone."""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.errors import RequestError
from infra.storage.checkpoints import list_checkpoints, read_files, read_record, write_checkpoint
from infra.storage.input_files import (
    NOT_THERE,
    InputFile,
    InputNotFound,
    InputsUnavailable,
    InputUnreadable,
    list_input_files,
    open_input,
    read_input,
    stat_input,
)
from infra.storage.keys import checkpoint_folder
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import ObjectStore, StoreMisconfigured, StoreUnavailable, open_store
from infra.storage.object_store.s3 import PART_BYTES
from infra.storage.retention import Pruned, RetentionUnsafe, prune
from infra.storage.store_check import check_store, masked
from infra.storage.uris import canonical_uri, percent_decode
from tests.harness.s3_server import Exchange, S3Server, faulty_proxy, free_port, on_ceph
from tests.unit.tasks.classification.image_inputs import OPTIONS, as_nobody, model_version, picture, plan_of, png

pytest_plugins = ["tests.harness.gateways"]

FMNIST = Path(sys.executable).parent / "fmnist"
AT_ONCE = timedelta(minutes=-1)
"""An age that every object has reached, because a server's clock can't be changed."""


@pytest.fixture(params=["file", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store, in a folder and on moto. For tests that depend on no detail of the server."""
    if request.param == "file":
        return open_store((tmp_path / "store").as_uri())
    found: ObjectStore = request.getfixturevalue("moto_store")
    return found


def fmnist(store: ObjectStore, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [FMNIST, *arguments],
        env=os.environ | {"FMNIST_STORE": store.root} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def keys(store: ObjectStore) -> list[str]:
    return [found.key for found in store.list("")]


# --- Check ---

STEPS = [
    "write",
    "read back, SHA-256",
    "list",
    "conditional create",
    "compare-and-set",
    "Parquet through pyarrow",
    "Delta commit",
    "delete",
]


def test_check_of_a_working_folder_passes_and_leaves_nothing(tmp_path: Path) -> None:
    assert_check_passes(open_store((tmp_path / "store").as_uri()))

    assert list((tmp_path / "store").rglob("*")) == []


def test_check_of_a_working_server_passes_and_leaves_nothing(s3_store: ObjectStore) -> None:
    assert_check_passes(s3_store)


def assert_check_passes(store: ObjectStore) -> None:
    report = check_store(store)

    assert [step.name for step in report.steps] == STEPS
    assert [(step.name, step.reason) for step in report.steps if not step.ok] == []
    assert all(step.milliseconds > 0 for step in report.steps)
    assert report.ok
    assert keys(store) == []


def test_check_command_prints_settings_but_no_secret(store: ObjectStore) -> None:
    result = fmnist(store, "store", "check")

    assert result.returncode == 0, result.stderr
    for word in (store.root, *STEPS):
        assert word in result.stdout
    if store.root.startswith("s3://"):
        key_id = os.environ["AWS_ACCESS_KEY_ID"]
        for word in (os.environ["AWS_ENDPOINT_URL"], "us-east-1", "path", "standard", "when_required", masked(key_id)):
            assert word in result.stdout
        for secret in (os.environ["AWS_SECRET_ACCESS_KEY"], key_id):
            assert secret not in result.stdout + result.stderr


def test_check_command_prints_json(store: ObjectStore) -> None:
    result = fmnist(store, "store", "check", "--json")

    report = json.loads(result.stdout.splitlines()[-1])
    assert report["ok"] is True
    assert report["root"] == store.root
    assert [step["name"] for step in report["steps"]] == STEPS


def test_check_detects_a_server_that_ignores_conditions(
    rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    rclone_server.use(monkeypatch)
    store = rclone_server.new_store()

    report = check_store(store)

    assert {step.name for step in report.steps if not step.ok} == {
        "conditional create",
        "compare-and-set",
        "Delta commit",
    }
    assert keys(store) == []
    result = fmnist(store, "store", "check")
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("fmnist: ")]
    for word in ("conditional create", "compare-and-set", "If-None-Match", rclone_server.endpoint):
        assert word in line
    assert "Traceback" not in result.stderr


@on_ceph
def test_check_stops_at_a_rejected_secret(ceph_store: ObjectStore) -> None:
    settings = {"AWS_SECRET_ACCESS_KEY": "wrong"}

    assert_check_stops(fmnist(ceph_store, "store", "check", "--json", **settings), "secret key")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "AWS_ACCESS_KEY_ID"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
    ],
)
def test_check_stops_at_incomplete_settings(moto_store: ObjectStore, settings: dict[str, str], reason: str) -> None:
    assert_check_stops(fmnist(moto_store, "store", "check", "--json", **settings), reason)


def test_check_stops_at_an_unreachable_server(moto_store: ObjectStore) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"

    assert_check_stops(fmnist(moto_store, "store", "check", "--json", AWS_ENDPOINT_URL=endpoint), endpoint)


def assert_check_stops(result: "subprocess.CompletedProcess[str]", reason: str) -> None:
    """The first step fails for this reason, and no other step runs."""
    report = json.loads(result.stdout.splitlines()[-1])
    assert result.returncode == 1
    assert reason in report["steps"][0]["reason"]
    assert [step["ok"] for step in report["steps"]] == [False] + [None] * 7
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_check_names_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = fmnist(open_store((tmp_path / "file").as_uri()), "store", "check")

    assert result.returncode == 1
    assert f"file://{tmp_path}/file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("key_id", "shown"), [("AKIAIOSFODNN7EXAMPLE", "AKIA…MPLE"), ("tests", "t…s")])
def test_access_key_id_is_masked(key_id: str, shown: str) -> None:
    assert masked(key_id) == shown


# --- Prune ---


def write_run(store: ObjectStore, losses: dict[int, float | None], run_id: str = "run") -> None:
    for epoch, loss in losses.items():
        write_checkpoint(
            store,
            run_id=run_id,
            epoch=epoch,
            files={"model.safetensors": f"weights of {run_id} {epoch}".encode(), "trainer.pt": b"state"},
            metrics={} if loss is None else {"loss": loss},
            parameters={},
            data_version="tests",
        )


def register(store: ObjectStore, epoch: int, run_id: str = "run", name: str = "fashion-mnist") -> int:
    registered = ModelRegistry(store, name).register(
        run_id=run_id, epoch=epoch, weights_sha256="", metrics={}, parameters={}, data_version="tests"
    )
    return registered.version


def verified(store: ObjectStore, run_id: str = "run") -> list[int]:
    """Epochs of the run's complete checkpoints. Each of them must verify."""
    epochs = list_checkpoints(store, run_id)
    for epoch in epochs:
        read_files(store, read_record(store, run_id, epoch))
    return epochs


def prune_at_once(store: ObjectStore, **options: Any) -> Pruned:
    return prune(store, older_than=AT_ONCE, **options)


LOSSES = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.8, 5: 0.3, 6: 0.7}


def test_prune_in_a_folder_keeps_the_best_and_the_last_checkpoint(tmp_path: Path) -> None:
    assert_best_and_last_stay(open_store((tmp_path / "store").as_uri()))


def test_prune_on_a_server_keeps_the_best_and_the_last_checkpoint(s3_store: ObjectStore) -> None:
    assert_best_and_last_stay(s3_store)


def assert_best_and_last_stay(store: ObjectStore) -> None:
    write_run(store, LOSSES)

    pruned = prune_at_once(store, keep_best=2)

    assert verified(store) == [1, 3, 6]
    assert [removal.uri for removal in pruned.removed] == [
        store.uri(checkpoint_folder("run", epoch)) for epoch in (2, 4, 5)
    ]
    assert {removal.kind for removal in pruned.removed} == {"checkpoint"}
    assert pruned.size > 0
    assert pruned.kept_checkpoints == 3
    assert not [key for key in keys(store) for epoch in (2, 4, 5) if key.startswith(checkpoint_folder("run", epoch))]
    assert prune_at_once(store, keep_best=2).removed == []


def test_dry_run_reports_the_same_and_changes_nothing(store: ObjectStore) -> None:
    write_run(store, LOSSES)
    store.create("runs/run/checkpoints/epoch-0007/model.safetensors", b"half")
    before = list(store.list(""))

    dry = prune_at_once(store, keep_best=2, dry_run=True)

    assert list(store.list("")) == before
    done = prune_at_once(store, keep_best=2)
    assert (dry.removed, dry.size, dry.kept_checkpoints) == (done.removed, done.size, done.kept_checkpoints)


def test_prune_keeps_checkpoints_of_versions_and_aliases(store: ObjectStore) -> None:
    write_run(store, LOSSES)
    register(store, 2)
    register(store, 4, name="another-model")
    ModelRegistry(store).point("champion", 1)

    prune_at_once(store, keep_best=0)

    assert verified(store) == [2, 4, 6]


def test_alias_of_a_lost_version_stops_prune(store: ObjectStore) -> None:
    write_run(store, LOSSES)
    registry = ModelRegistry(store)
    register(store, 2)
    registry.point("champion", 1)
    store.delete("models/fashion-mnist/versions/00000001.json")

    with pytest.raises(RetentionUnsafe, match="fashion-mnist"):
        prune_at_once(store, keep_best=0)

    assert verified(store) == list(LOSSES)


def test_version_registered_during_removal_keeps_its_checkpoint(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(store, LOSSES)
    delete = store.delete

    def delete_and_register(key: str) -> None:
        delete(key)
        if key == f"{checkpoint_folder('run', 4)}/checkpoint.json":
            register(store, 4)

    monkeypatch.setattr(store, "delete", delete_and_register)

    pruned = prune_at_once(store, keep_best=0)

    assert verified(store) == [4, 6]
    assert len(pruned.removed) == 4


def test_version_registered_after_planning_keeps_its_checkpoint(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(store, LOSSES)
    delete = store.delete

    def register_then_delete(key: str) -> None:
        if not ModelRegistry(store).versions():
            register(store, 5)
        delete(key)

    monkeypatch.setattr(store, "delete", register_then_delete)

    prune_at_once(store, keep_best=0)

    assert verified(store) == [5, 6]


def test_interrupted_prune_leaves_no_damaged_checkpoint(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(store, LOSSES)
    delete = store.delete
    left = [2]

    def delete_twice(key: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        delete(key)

    with monkeypatch.context() as patched:
        patched.setattr(store, "delete", delete_twice)
        with pytest.raises(KeyboardInterrupt):
            prune_at_once(store, keep_best=0)

    assert verified(store) == [2, 3, 4, 5, 6]
    assert [key for key in keys(store) if "epoch-0001" in key] == ["runs/run/checkpoints/epoch-0001/trainer.pt"]
    prune_at_once(store, keep_best=0)
    assert {key.split("/")[3] for key in keys(store)} == {"epoch-0006"}


def test_prune_skips_an_active_run(store: ObjectStore) -> None:
    write_run(store, LOSSES)
    store.create("runs/run/checkpoints/epoch-0007/model.safetensors", b"half")
    before = keys(store)

    pruned = prune(store, keep_best=0)

    assert keys(store) == before
    assert pruned.removed == []
    assert pruned.active_runs == ["run"]


def test_prune_removes_only_from_old_runs(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    for run_id, hours in (("old", 30), ("young", 10)):
        write_run(store, LOSSES, run_id)
        age(tmp_path / "store" / "runs" / run_id, hours)
    age(tmp_path / "store" / "runs" / "young" / "checkpoints" / "epoch-0001", 30)

    prune(store, keep_best=0)

    assert (verified(store, "old"), verified(store, "young")) == ([6], list(LOSSES))


def test_prune_removes_incomplete_checkpoints(store: ObjectStore) -> None:
    write_run(store, {1: 0.5})
    for epoch in (2, 3):
        store.create(f"{checkpoint_folder('run', epoch)}/model.safetensors", b"half")
    store.create(f"{checkpoint_folder('never', 1)}/model.safetensors", b"half")

    pruned = prune_at_once(store)

    assert verified(store) == [1]
    assert {removal.kind for removal in pruned.removed} == {"incomplete checkpoint"}
    assert [removal.size for removal in pruned.removed] == [4, 4, 4]
    assert len(keys(store)) == 3


def test_newest_checkpoints_without_the_metric_rank_after_those_with_it(store: ObjectStore) -> None:
    write_run(store, {1: None, 2: None, 3: None, 4: 0.5, 5: None, 6: None})

    prune_at_once(store, keep_best=3)

    assert verified(store) == [4, 5, 6]


def test_prune_keeps_a_checkpoint_with_a_damaged_record(store: ObjectStore) -> None:
    write_run(store, {1: 0.5, 3: 0.4})
    store.create(f"{checkpoint_folder('run', 2)}/checkpoint.json", b"{")

    prune_at_once(store, keep_best=0)

    assert list_checkpoints(store, "run") == [2, 3]


def test_prune_keeps_everything_else_in_the_store(store: ObjectStore) -> None:
    others = [
        "datasets/d/dataset.json",
        "predictions/t/_reports/1/index.html",
        "predictions/t/_parts/batch=1/00000-0.parquet",
        "runs/run/metrics.parquet",
        "runs/run/checkpoints/notes.txt",
        "runs/run/checkpoints/epoch-00007/checkpoint.json",
        "runs/run/report/curve.png",
        "runs/not a run/checkpoints/epoch-0001/file",
        "somebody/else",
    ]
    for key in others:
        store.create(key, b"data")

    assert prune_at_once(store).removed == []
    assert keys(store) == sorted(others)


def test_prune_removes_scratch_objects_of_a_killed_check(store: ObjectStore) -> None:
    store.create("scratch/one/object", b"data")

    assert prune(store).removed == []
    assert [removal.kind for removal in prune_at_once(store).removed] == ["scratch"]
    assert keys(store) == []


def test_delete_removes_the_lock_and_the_empty_folder(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    store.swap("models/m/alias", b"first", seen=None)
    store.swap("models/m/alias", b"second", seen=store.read_with_etag("models/m/alias")[1])

    store.delete("models/m/alias")

    assert list((tmp_path / "store").rglob("*")) == []


def test_concurrent_writes_and_deletes_in_one_folder_succeed(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())

    def write_and_delete(number: int) -> None:
        for _ in range(200):
            store.create(f"a/b/{number}", b"data")
            store.delete(f"a/b/{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write_and_delete, range(4)))

    assert keys(store) == []


def test_prune_removes_unfinished_writes_but_no_lock(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    folder = tmp_path / "store" / "predictions" / "t"
    folder.mkdir(parents=True)
    dead, alive = folder / f".part.parquet.{'a' * 32}", folder / f".part.parquet.{'b' * 32}"
    lock, foreign = folder / ".champion.json.lock", folder / ".gitignore"
    for file in (dead, alive, lock, foreign):
        file.write_bytes(b"four")
    for file in (dead, lock, foreign):
        age(file, 30)

    dry = prune(store, dry_run=True)
    assert dead.exists()
    [removal] = prune(store).removed

    assert dry.removed == [removal]
    assert (removal.kind, removal.uri, removal.size) == ("unfinished write", store.uri("predictions/t/part.parquet"), 4)
    assert sorted(folder.iterdir()) == sorted([alive, lock, foreign])


def start_upload(store: ObjectStore, key: str) -> None:
    """Upload one part of an object and never complete it."""
    from infra.storage.object_store.s3_configuration import s3_connection

    bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
    client = s3_connection().client
    upload = client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{key}")
    client.upload_part(
        Bucket=bucket, Key=f"{prefix}/{key}", UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 1000
    )


def test_prune_removes_old_uploads(s3_store: ObjectStore) -> None:
    for key in ("predictions/t/part.parquet", "somebody/else"):
        start_upload(s3_store, key)

    dry = prune_at_once(s3_store, dry_run=True)
    [removal] = prune_at_once(s3_store).removed

    assert dry.removed == [removal]
    assert (removal.uri, removal.size) == (s3_store.uri("predictions/t/part.parquet"), 1000)
    assert [found.key for found in s3_store.list_unfinished(datetime.now(UTC) + timedelta(minutes=1))] == [
        "somebody/else"
    ]


@on_ceph  # moto reports that every upload started in 2010
def test_prune_keeps_recent_uploads(ceph_store: ObjectStore) -> None:
    start_upload(ceph_store, "predictions/t/part.parquet")

    assert prune(ceph_store).removed == []


def test_prune_command_reports_what_it_removes(store: ObjectStore) -> None:
    write_run(store, LOSSES)

    dry = fmnist(store, "store", "prune", "--keep-best", "1", "--older-than-hours", "0", "--dry-run", "--json")
    too_recent = fmnist(store, "store", "prune", "--keep-best", "1", "--json")
    done = fmnist(store, "store", "prune", "--keep-best", "1", "--older-than-hours", "0")

    assert [len(json.loads(dry.stdout.splitlines()[-1])["removed"]), dry.returncode] == [4, 0]
    skipped = json.loads(too_recent.stdout.splitlines()[-1])
    assert (skipped["removed"], skipped["active_runs"]) == ([], ["run"])
    assert "epoch-0004" in done.stdout
    assert verified(store) == [1, 6]


def test_prune_refuses_negative_numbers(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    for option in ("--keep-best", "--older-than-hours"):
        result = fmnist(store, "store", "prune", f"{option}=-1")
        assert result.returncode == 2
        assert option in result.stderr


def age(path: Path, hours: float) -> None:
    """Set the modification time of a file, or of every file below a folder, to this many hours ago."""
    moment = (datetime.now(UTC) - timedelta(hours=hours)).timestamp()
    for file in path.rglob("*") if path.is_dir() else [path]:
        os.utime(file, (moment, moment))


# --- Folders that can't be written ---


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limit files to 64 KiB, so that a write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_names_the_store_and_leaves_nothing(tmp_path: Path, small_files: None) -> None:
    store = open_store((tmp_path / "store").as_uri())

    def publish() -> None:
        with store.publish("folder/published") as stream:
            for _ in range(100):
                stream.write(b"x" * 10_000)

    for write in (publish, lambda: store.create("folder/created", b"x" * 100_000)):
        with pytest.raises(StoreUnavailable) as error:
            write()
        assert store.root in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_error_in_the_writer_keeps_its_class(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())

    def publish() -> None:
        with store.publish("object") as stream:
            stream.write(b"x" * 2**21)
            stream.write((tmp_path / "nowhere").read_bytes())

    with pytest.raises(FileNotFoundError, match="nowhere"):
        publish()

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    store.create("runs", b"a file")

    for write in (lambda: store.create("runs/object", b""), lambda: store.publish("runs/object").__enter__()):
        with pytest.raises(StoreMisconfigured) as error:
            write()
        assert store.root in str(error.value)


def test_missing_permission_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    store = open_store((tmp_path / "store").as_uri())

    for write in (lambda: store.create("object", b""), lambda: store.publish("object").__enter__()):
        with as_nobody(), pytest.raises(StoreMisconfigured, match="Permission denied") as error:
            write()
        assert store.root in str(error.value)


# --- Multipart uploads ---


@pytest.mark.parametrize("size", [PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 6 * PART_BYTES + 7])
def test_object_of_about_one_part_reads_back(s3_store: ObjectStore, size: int) -> None:
    data = os.urandom(size)

    with s3_store.publish("object") as stream:
        for start in range(0, size, 3_000_001):
            stream.write(data[start : start + 3_000_001])
        assert stream.tell() == size

    assert s3_store.read("object") == data


def test_object_reads_back_if_the_sdk_adds_checksums(s3_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    data = os.urandom(2 * PART_BYTES + 1)

    with s3_store.publish("object") as stream:
        stream.write(data)

    assert s3_store.read("object") == data


def first(times: int, method: str, words: str, seen: list[str]) -> Any:
    """Return a check for the first exchanges of one kind. `seen` collects the paths of all exchanges of that kind."""

    def is_first(exchange: Exchange) -> bool:
        if exchange.method == method and words in exchange.path:
            seen.append(exchange.path)
            return len(seen) <= times
        return False

    return is_first


def publish_parts(store: ObjectStore) -> bytes:
    data = os.urandom(2 * PART_BYTES + 1)
    with store.publish("object") as stream:
        stream.write(data)
    return data


@on_ceph
def test_part_corrupted_in_transit_is_sent_again(ceph_gateway: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    is_first = first(1, "PUT", "partNumber=2", seen)

    def damage(exchange: Exchange) -> None:
        if is_first(exchange):
            exchange.body = exchange.body[:-1] + bytes([exchange.body[-1] ^ 1])

    with faulty_proxy(ceph_gateway, before=damage) as server:
        server.use(monkeypatch)
        store = server.new_store()
        assert publish_parts(store) == store.read("object")
    assert len(seen) == 2


def test_upload_completes_if_the_last_answer_is_lost(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    is_first = first(1, "POST", "uploadId=", seen)

    def lose(exchange: Exchange) -> None:
        exchange.lose_answer = is_first(exchange)

    with faulty_proxy(s3_server, after=lose) as server:
        server.use(monkeypatch)
        store = server.new_store()
        assert publish_parts(store) == store.read("object")
    assert len(seen) >= 2


def test_failed_writer_leaves_no_parts(s3_store: ObjectStore) -> None:
    def publish() -> None:
        with s3_store.publish("object") as stream:
            stream.write(os.urandom(3 * PART_BYTES))
            raise KeyError

    with pytest.raises(KeyError):
        publish()

    assert list(s3_store.list_unfinished(datetime.now(UTC) + timedelta(minutes=1))) == []


def test_write_fails_if_the_server_is_gone_midway(moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"

    def publish() -> None:
        with moto_store.publish("object") as stream:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            for _ in range(6):
                stream.write(os.urandom(PART_BYTES))

    with pytest.raises(StoreUnavailable) as error:
        publish()
    assert endpoint in str(error.value)


def test_upload_is_read_back_if_its_etag_proves_nothing(
    rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rclone's ETag of a multipart object isn't the digest of its parts' digests."""
    read_back: list[str] = []
    is_first = first(99, "GET", "/object", read_back)
    damaged = [False]

    def damage(exchange: Exchange) -> None:
        if is_first(exchange) and damaged[0]:
            exchange.answer_body = exchange.answer_body[:-1] + bytes([exchange.answer_body[-1] ^ 1])

    with faulty_proxy(rclone_server, after=damage) as server:
        server.use(monkeypatch)
        store = server.new_store()
        data = publish_parts(store)
        assert len(read_back) == 1
        assert store.read("object") == data

        damaged[0] = True
        with pytest.raises(StoreUnavailable) as error:
            publish_parts(store)
        assert store.uri("object") in str(error.value)
        assert keys(store) == ["object"]


# --- Writers that overtake each other ---

OTHER = b"other" * 1000


def overtaking(store_root: str, method: str, words: str) -> tuple[list[str], Any]:
    """Return a fault that publishes other bytes when a request of one kind first passes, and the paths that it saw."""
    seen: list[str] = []
    is_first = first(1, method, words, seen)

    def overtake(exchange: Exchange) -> None:
        if is_first(exchange):
            with open_store(store_root).publish("object") as stream:
                stream.write(OTHER)

    return seen, overtake


def test_upload_overtaken_after_its_completion_leaves_the_later_object(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = s3_server.new_store().root
    seen, overtake = overtaking(root, "POST", "uploadId=")
    with faulty_proxy(s3_server, after=overtake) as server:
        server.use(monkeypatch)

        publish_parts(open_store(root))

        assert open_store(root).read("object") == OTHER
    assert len(seen) == 1


def test_upload_overtaken_before_its_completion_replaces_the_earlier_object(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = s3_server.new_store().root
    seen, overtake = overtaking(root, "POST", "uploadId=")
    with faulty_proxy(s3_server, before=overtake) as server:
        server.use(monkeypatch)

        data = publish_parts(open_store(root))

        assert open_store(root).read("object") == data
    assert len(seen) == 1


def test_put_overtaken_before_its_check_leaves_the_later_object(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = s3_server.new_store().root
    seen, overtake = overtaking(root, "PUT", "/object")

    def overtake_and_hide_the_digest(exchange: Exchange) -> None:
        overtake(exchange)
        if exchange.method == "PUT":
            exchange.answer_etag = '"no-digest"'

    with faulty_proxy(s3_server, after=overtake_and_hide_the_digest) as server:
        server.use(monkeypatch)
        store = open_store(root)

        with store.publish("object") as stream:
            stream.write(b"overtaken")

        assert store.read("object") == OTHER
    assert len(seen) == 2


def test_swap_overtaken_before_its_check_leaves_the_later_object(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = s3_server.new_store().root
    s3_server.use(monkeypatch)
    store = open_store(root)
    store.create("object", b"first")
    seen_etag = store.read_with_etag("object")[1]
    _, overtake = overtaking(root, "PUT", "/object")

    def overtake_and_hide_the_digest(exchange: Exchange) -> None:
        overtake(exchange)
        if exchange.method == "PUT":
            exchange.answer_etag = '"no-digest"'

    with faulty_proxy(s3_server, after=overtake_and_hide_the_digest) as server:
        server.use(monkeypatch)

        store.swap("object", b"second", seen=seen_etag)

        assert store.read("object") == OTHER


def test_upload_whose_answer_is_lost_and_that_is_overtaken_can_be_tried_again(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer can't tell whether its upload was completed or aborted. It must not report a success."""
    root = s3_server.new_store().root
    seen, overtake = overtaking(root, "POST", "uploadId=")

    def overtake_and_lose(exchange: Exchange) -> None:
        overtake(exchange)
        exchange.lose_answer = exchange.method == "POST" and len(seen) == 1

    with faulty_proxy(s3_server, after=overtake_and_lose) as server:
        server.use(monkeypatch)
        store = open_store(root)

        try:
            publish_parts(store)
        except StoreUnavailable:
            assert store.read("object") == OTHER
            data = publish_parts(store)
            assert store.read("object") == data
        else:  # the server has completed the upload a second time
            assert store.read("object") != OTHER


@pytest.mark.parametrize("size", [1000, 2 * PART_BYTES + 1])
def test_object_with_other_bytes_than_were_sent_is_reported_and_kept(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A server whose ETags prove nothing, and which stores other bytes."""

    def hide_the_digest_and_damage(exchange: Exchange) -> None:
        if exchange.path.endswith("/object") and exchange.method in ("PUT", "HEAD"):
            exchange.answer_etag = '"no-digest"'
        if exchange.path.endswith("/object") and exchange.method == "GET":
            exchange.answer_body = exchange.answer_body[:-1] + bytes([exchange.answer_body[-1] ^ 1])

    with faulty_proxy(moto_server, after=hide_the_digest_and_damage) as server:
        server.use(monkeypatch)
        store = server.new_store()

        with pytest.raises(StoreUnavailable) as error, store.publish("object") as stream:
            stream.write(os.urandom(size))

        assert store.uri("object") in str(error.value)
        assert keys(store) == ["object"]


def test_upload_overtaken_on_a_server_whose_etags_prove_nothing_leaves_the_later_object(
    rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = rclone_server.new_store().root
    _, overtake = overtaking(root, "POST", "uploadId=")
    with faulty_proxy(rclone_server, after=overtake) as server:
        server.use(monkeypatch)
        store = open_store(root)

        publish_parts(store)

        assert store.read("object") == OTHER


def test_put_overtaken_on_a_server_without_metadata_leaves_the_later_object(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = moto_server.new_store().root
    _, overtake = overtaking(root, "PUT", "/object")

    def overtake_and_drop_metadata(exchange: Exchange) -> None:
        overtake(exchange)
        exchange.drop_metadata = True
        if exchange.method == "PUT":
            exchange.answer_etag = '"no-digest"'

    with faulty_proxy(moto_server, after=overtake_and_drop_metadata) as server:
        server.use(monkeypatch)
        store = open_store(root)

        with store.publish("object") as stream:
            stream.write(b"overtaken")

        assert store.read("object") == OTHER


def test_upload_overtaken_on_a_server_without_metadata_is_reported_and_leaves_the_later_object(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer can't tell whether the object is another writer's or damaged."""
    root = moto_server.new_store().root
    _, overtake = overtaking(root, "POST", "uploadId=")

    def overtake_and_drop_metadata(exchange: Exchange) -> None:
        overtake(exchange)
        exchange.drop_metadata = True

    with faulty_proxy(moto_server, after=overtake_and_drop_metadata) as server:
        server.use(monkeypatch)
        store = open_store(root)

        with pytest.raises(StoreUnavailable) as error:
            publish_parts(store)

        assert store.uri("object") in str(error.value)
        assert store.read("object") == OTHER


# --- Inputs on S3 ---

NAMES = ["a.png", "b.png", "c.jpg", "x/d.png", "x/y/e.png", ".hidden/f.png", "_g.png", "x/_h/i.png", "two #1 50%?.png"]


@pytest.fixture
def images(s3_store: ObjectStore) -> str:
    """URI of a prefix with objects. The store itself wouldn't create some of their names."""
    from infra.storage.object_store.s3_configuration import s3_connection

    uri = f"{s3_store.root}/images"
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    for name in NAMES:
        s3_connection().client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=name.encode())
    for name in ("", "x/"):  # some tools create such objects as folders
        s3_connection().client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=b"")
    return uri


def listed(location: str, below: str) -> list[str]:
    return [percent_decode(file.uri.removeprefix(f"{below}/")) for file in list_input_files(location)]


ALL = ["_g.png", "a.png", "b.png", "c.jpg", "two #1 50%?.png", "x/_h/i.png", "x/d.png", "x/y/e.png"]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("", ALL),
        ("/", ALL),
        ("/x", ["x/_h/i.png", "x/d.png", "x/y/e.png"]),
        ("/a.png", ["a.png"]),
        ("/_g.png", ["_g.png"]),
        ("/.hidden", [".hidden/f.png"]),
        ("/two #1 50%?.png", ["two #1 50%?.png"]),
        ("/*.png", ["_g.png", "a.png", "b.png", "two #1 50%?.png"]),
        ("/?.png", ["a.png", "b.png"]),
        ("/[ac].*", ["a.png", "c.jpg"]),
        ("/**/*.png", [name for name in ALL if name != "c.jpg"]),
        ("/*/*.png", ["x/d.png"]),
        ("/x*/d.*", ["x/d.png"]),
        ("/*.webp", []),
    ],
)
def test_s3_listing_matches_the_same_local_folder(
    images: str, location: str, expected: list[str], tmp_path: Path
) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    assert listed(images + location, images) == expected
    assert sorted(listed(f"file://{tmp_path}{location}", f"file://{tmp_path}")) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (
            "",
            [
                ("folder marker", "old_$folder$"),
                ("folder marker", "x/"),
                ("hidden file", "x/.z.png"),
                ("hidden folder", ".hidden/"),
                ("metadata folder", "x/_delta_log/"),
                ("object named like a folder", "content/"),
            ],
        ),
        ("/*", [("folder marker", "old_$folder$")]),
        ("/x/*.png", [("hidden file", "x/.z.png")]),
        ("/**/*.png", [("hidden file", "x/.z.png"), ("hidden folder", ".hidden/")]),
        ("/a.png", []),
    ],
)
def test_s3_listing_counts_what_it_passes_over(images: str, location: str, expected: list[tuple[str, str]]) -> None:
    from infra.storage.object_store.s3_configuration import s3_connection

    bucket, _, prefix = images.removeprefix("s3://").partition("/")
    more = {"x/.z.png": b"z", "x/_delta_log/0.json": b"{}", "x/_delta_log/1.json": b"{}", "content/": b"data"}
    more |= {"old_$folder$": b"", ".hidden/g.png": b"g", ".hidden/x/h.png": b"h"}
    for name, data in more.items():
        s3_connection().client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)

    found: list[tuple[str, str]] = []
    list(list_input_files(images + location, lambda kind, uri: found.append((kind, uri.removeprefix(f"{images}/")))))
    assert sorted(found) == expected


def test_listed_s3_input_opens_by_its_uri(images: str) -> None:
    for file in list_input_files(images):
        with open_input(file.uri) as stream:
            assert stream.read() == percent_decode(file.uri.removeprefix(f"{images}/")).encode()
        assert list(list_input_files(file.uri)) == [file]


def test_s3_fingerprint_changes_with_the_object(s3_store: ObjectStore) -> None:
    fingerprints = []
    for data in (b"one", b"one", b"two", b"three"):
        with s3_store.publish("object.png") as stream:
            stream.write(data)
        [file] = list_input_files(s3_store.uri("object.png"))
        assert file.size == len(data)
        fingerprints.append(file.fingerprint)

    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_s3_listing_of_many_pages_is_complete(s3_store: ObjectStore) -> None:
    s3_store.check_conditional_writes()
    names = [f"{number:04d}.png" for number in range(1050)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: s3_store.create(f"many/{name}", b""), names))

    assert listed(s3_store.uri("many"), s3_store.uri("many")) == names


@pytest.mark.parametrize("location", ["/nowhere", "/nowhere/", "/nowhere/*.png", "/a.png/*.png"])
def test_error_for_a_missing_s3_input_names_it(images: str, location: str) -> None:
    with pytest.raises(InputNotFound) as error:
        list(list_input_files(images + location))

    assert images + location in str(error.value)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://no-such-bucket/x", "no-such-bucket"),
        ("s3://", "bucket"),
        ("s3://b*/x", "bucket"),
        ("s3://key:canary@bucket/x", "password"),
    ],
)
def test_invalid_s3_input_is_refused_without_repeating_a_secret(
    s3_store: ObjectStore, location: str, expected: str
) -> None:
    with pytest.raises(RequestError, match=expected) as error:
        list(list_input_files(location))

    assert "canary" not in str(error.value)


@on_ceph
def test_rejected_secret_is_reported_but_not_repeated(ceph_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ceph_store.create("images/a.png", b"a.png")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")

    with pytest.raises(RequestError) as error:
        list(list_input_files(ceph_store.uri("images")))
    assert ceph_store.uri("images") in str(error.value)
    assert os.environ["AWS_ENDPOINT_URL"] in str(error.value)
    assert "canary" not in str(error.value)


def test_unknown_profile_is_named(moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    moto_store.create("images/a.png", b"a.png")
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    with pytest.raises(RequestError, match="nobody"):
        list(list_input_files(moto_store.uri("images")))


def test_parquet_on_s3_is_read_by_row_groups(s3_store: ObjectStore) -> None:
    import pyarrow as pa

    with s3_store.publish("inputs/table.parquet") as stream:
        pq.write_table(pa.table({"number": range(100)}), stream, row_group_size=10)
    [file] = list_input_files(s3_store.uri("inputs"))

    with open_input(file.uri) as opened, pq.ParquetFile(opened) as parquet:
        assert parquet.read_row_group(3).column("number").to_pylist() == list(range(30, 40))


def test_stat_of_an_s3_input_equals_its_listing(images: str) -> None:
    for file in list_input_files(images):
        assert stat_input(file.uri) == file


@pytest.mark.parametrize("name", ["nowhere.png", "a.png/b.png", "x", "x/", ""])
def test_stat_of_a_missing_s3_input_is_none(images: str, name: str) -> None:
    assert stat_input(f"{images}/{name}") is None


def test_s3_input_is_read_completely(images: str) -> None:
    for file in list_input_files(images):
        name = percent_decode(file.uri.removeprefix(f"{images}/"))
        assert read_input(file.uri, file.fingerprint, 1000) == name.encode()


def test_deleted_s3_input_is_reported_as_vanished(s3_store: ObjectStore, images: str) -> None:
    [file] = list_input_files(f"{images}/a.png")
    s3_store.delete("images/a.png")

    with pytest.raises(InputUnreadable, match=r"^vanished: "):
        read_input(file.uri, file.fingerprint, 1000)


def test_s3_input_missing_from_the_plan_is_reported_as_vanished(images: str) -> None:
    with pytest.raises(InputUnreadable, match=r"^vanished: "):
        read_input(f"{images}/a.png", NOT_THERE, 1000)


def test_replaced_s3_input_is_reported_as_changed(s3_store: ObjectStore, images: str) -> None:
    [file] = list_input_files(f"{images}/a.png")
    with s3_store.publish("images/a.png") as stream:
        stream.write(b"A.png")

    with pytest.raises(InputUnreadable, match=r"^changed: "):
        read_input(file.uri, file.fingerprint, 1000)


def test_oversized_s3_input_is_reported_as_too_large(images: str) -> None:
    [file] = list_input_files(f"{images}/a.png")

    with pytest.raises(InputUnreadable, match=r"^too large: 5\b"):
        read_input(file.uri, file.fingerprint, 4)


@pytest.fixture
def large_image(moto_store: ObjectStore) -> tuple[InputFile, bytes]:
    """An object that takes several reads, and its bytes."""
    data = os.urandom(1_000_000)
    with moto_store.publish("large.png") as stream:
        stream.write(data)
    [file] = list_input_files(moto_store.uri("large.png"))
    return file, data


def test_truncated_s3_input_is_read_again(
    large_image: tuple[InputFile, bytes], moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, data = large_image
    seen: list[str] = []
    is_first = first(2, "GET", "/large.png", seen)

    def cut(exchange: Exchange) -> None:
        exchange.cut_answer_at = 300_000 if is_first(exchange) else None

    with faulty_proxy(moto_server, after=cut) as server:
        server.use(monkeypatch)
        assert read_input(file.uri, file.fingerprint, 2_000_000) == data
    assert len(seen) == 3


def test_truncated_answers_do_not_count_against_the_image(
    large_image: tuple[InputFile, bytes], moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = large_image
    seen: list[str] = []
    is_first = first(1000, "GET", "/large.png", seen)

    def cut(exchange: Exchange) -> None:
        exchange.cut_answer_at = 300_000 if is_first(exchange) else None

    with faulty_proxy(moto_server, after=cut) as server:
        server.use(monkeypatch)
        with pytest.raises(InputsUnavailable) as error:
            read_input(file.uri, file.fingerprint, 2_000_000)
        assert file.uri in str(error.value)


@pytest.mark.parametrize("act", ["stat", "read"])
@pytest.mark.parametrize(
    ("server", "setting", "error_class"),
    [
        pytest.param("ceph_store", "AWS_SECRET_ACCESS_KEY=wrong", RequestError, marks=on_ceph),
        ("moto_store", "AWS_PROFILE=nobody", RequestError),
        ("moto_store", "AWS_ENDPOINT_URL=http://127.0.0.1:{port}", InputsUnavailable),
    ],
)
def test_wrong_settings_do_not_count_against_the_image(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    *,
    server: str,
    setting: str,
    error_class: type[Exception],
    act: str,
) -> None:
    store: ObjectStore = request.getfixturevalue(server)
    store.create("a.png", b"a.png")
    [file] = list_input_files(store.uri("a.png"))
    variable, _, value = setting.partition("=")
    monkeypatch.setenv(variable, value.format(port=free_port()))

    with pytest.raises(error_class) as error:
        stat_input(file.uri) if act == "stat" else read_input(file.uri, file.fingerprint, 1000)
    assert file.uri in str(error.value)


# --- Classification from S3 ---


@pytest.fixture
def pictures(s3_store: ObjectStore) -> str:
    """URI of a prefix with 11 images in files, a tar and a Parquet file."""
    import pyarrow as pa

    for number in range(4):
        s3_store.create(f"pictures/{number} größe #.png", png(number))
    with s3_store.publish("pictures/x/a.tar") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for number in range(4, 8):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(png(number))
            archive.addfile(member, io.BytesIO(png(number)))
    with s3_store.publish("pictures/y.parquet") as stream:
        pq.write_table(pa.table({"image": [png(number) for number in range(8, 11)]}), stream)
    return s3_store.uri("pictures")


def test_planned_images_on_s3_are_all_read(pictures: str) -> None:
    from fmnist_model.images.decode import decode_images
    from tasks.classification.read import read_shard

    found = {}
    for batch in read_shard(plan_of(pictures), OPTIONS):
        decoded = decode_images(batch.encoded)
        assert (decoded.rejected, batch.reasons) == ([], {})
        found |= dict(zip(batch.images.to_pylist(), decoded.pixels.tolist(), strict=True))

    names = [f"{number} größe %23.png" for number in range(4)]
    names += [f"x/a.tar#member={number}.png" for number in range(4, 8)] + [f"y.parquet#row={row}" for row in range(3)]
    assert found == {f"{pictures}/{name}": picture(number).tolist() for number, name in enumerate(names)}


ODD_NAMES = ["%41.png", "#row=3.png", "a?.png", "tab\t.png", "del\x7f.png", "back\\slash.png", "x//./y.png"]


@pytest.fixture
def odd_keys(s3_store: ObjectStore) -> tuple[str, list[str]]:
    """URI of a prefix with images, and their keys below it. The store itself wouldn't create some of them."""
    from infra.storage.object_store.s3_configuration import s3_connection

    bucket, _, prefix = s3_store.uri("odd").removeprefix("s3://").partition("/")
    for number, name in enumerate(ODD_NAMES):
        s3_connection().client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=png(number))
    return s3_store.uri("odd"), ODD_NAMES


def test_images_on_s3_under_any_key_are_read_once(odd_keys: tuple[str, list[str]]) -> None:
    from tasks.classification.read import read_shard

    folder, names = odd_keys
    keys = [f"{folder}/{name}" for name in names]
    plan = plan_of(folder, folder.replace("s3://", "S3://"), *keys, *map(canonical_uri, keys))
    found = {}
    for batch in read_shard(plan, OPTIONS):
        assert batch.reasons == {}
        found |= dict(zip(batch.images.to_pylist(), batch.encoded.to_pylist(), strict=True))
    assert len(plan) == len(names)
    assert found == {canonical_uri(key): png(number) for number, key in enumerate(keys)}


def test_key_on_s3_is_not_decoded_if_an_object_has_it(s3_store: ObjectStore) -> None:
    for name in ("A.png", "%41.png"):
        s3_store.create(f"both/{name}", b"")
    assert listed(s3_store.uri("both/%41.png"), s3_store.uri("both")) == ["%41.png"]
    s3_store.delete("both/%41.png")
    assert listed(s3_store.uri("both/%41.png"), s3_store.uri("both")) == ["A.png"]


def test_canonical_uri_on_s3_is_accepted_in_a_list(odd_keys: tuple[str, list[str]], s3_store: ObjectStore) -> None:
    folder, _ = odd_keys
    locations = [f"{folder}/%41.png", f"{folder}/%2541.png", f"{folder}/%23row=3.png", "#row=3.png", "./%2541.png"]
    s3_store.create("odd/list.csv", "\n".join(["uri", *locations]).encode())
    found = plan_of(f"{folder}/list.csv").select(["uri", "size"]).to_pylist()
    sizes = {f"{folder}/%2541.png": len(png(0)), f"{folder}/%23row=3.png": len(png(1))}
    assert {row["uri"]: row["size"] for row in found} == sizes


def test_deleted_and_replaced_images_on_s3_are_reported(s3_store: ObjectStore, pictures: str) -> None:
    from tasks.classification.read import read_shard

    plan = plan_of(pictures)
    s3_store.delete("pictures/1 größe #.png")
    s3_store.delete("pictures/y.parquet")
    with s3_store.publish("pictures/x/a.tar") as stream:
        stream.write(b"changed")

    reasons = [
        batch.reasons.get(row, "").partition(":")[0]
        for batch in read_shard(plan, OPTIONS)
        for row in range(len(batch.images))
    ]
    assert reasons == ["", "vanished", "", "", *["changed"] * 4, *["vanished"] * 3]


@pytest.mark.parametrize("where", ["file", "s3"])
def test_unfinished_plan_of_images_on_s3_is_found_again(
    where: str, s3_store: ObjectStore, pictures: str, tmp_path: Path
) -> None:
    from tasks.classification.plan import plan_inputs

    store = s3_store if where == "s3" else open_store((tmp_path / "store").as_uri())
    work = []
    for run in range(2):
        (tmp_path / f"{run}").mkdir()
        work.append(
            plan_inputs(
                store,
                [pictures],
                table="t",
                model=model_version(1),
                options=OPTIONS,
                scratch=tmp_path / f"{run}",
            )
        )

    assert [plan.planned for plan in work[0].plans] == [11]
    assert (work[1].plans, work[1].done.images) == (work[0].plans, 0)


def test_list_on_s3_names_images_by_path_and_by_uri(s3_store: ObjectStore, pictures: str) -> None:
    s3_store.create("pictures/list.csv", f"uri,label\n0 größe #.png,7\n{pictures}/x/a.tar,\nnowhere.png,3\n".encode())

    found = plan_of(f"{pictures}/list.csv").select(["uri", "kind", "rows", "label"]).to_pylist()

    assert [(row["uri"].removeprefix(f"{pictures}/"), row["kind"], row["rows"], row["label"]) for row in found] == [
        ("0 größe %23.png", "image", 1, 7),
        ("nowhere.png", "image", 1, 3),
        ("x/a.tar", "tar", 4, None),
    ]
