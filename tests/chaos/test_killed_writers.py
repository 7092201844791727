"""Kill writers at random moments, in a folder and on S3. A reader must find whole objects only."""

import hashlib
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from infra.storage.checkpoints import list_checkpoints, read_files, read_record, write_checkpoint
from infra.storage.object_store import ObjectStore, open_store
from tests.harness.s3_server import S3Server

pytest_plugins = ["tests.harness.gateways"]

LARGE = 20 * 2**20
"""Bytes of a large object, which is sent to S3 in three parts."""

# Writers are forked from a server that has imported their modules. That saves each of them a second.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "boto3"])

found_whole = {"file": 0, "s3": 0}
"""Number of whole objects and checkpoints found, per kind of store."""


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    if request.param == "file":
        return open_store(tmp_path.as_uri())
    server: S3Server = request.getfixturevalue("ceph_or_moto")
    server.use(monkeypatch)
    return open_store(f"s3://{server.bucket}/killed-{uuid4().hex[:8]}")


@pytest.mark.rounds(full=50, short=50)
def test_reader_never_sees_part_of_a_killed_upload(store: ObjectStore, seed: int) -> None:
    ready = PROCESSES.Event()
    writer = PROCESSES.Process(target=write_forever, args=(dict(os.environ), store.root, ready))
    writer.start()
    try:
        assert ready.wait(60)
        time.sleep(random.Random(seed).uniform(0, 0.6))
    finally:
        writer.kill()
        writer.join()

    for stat in store.list("objects/"):
        assert hashlib.sha256(store.read(stat.key)).hexdigest() == stat.key.rpartition("/")[2]
        found_whole[store.root.partition(":")[0]] += 1
    for epoch in list_checkpoints(store, "run"):
        assert set(read_files(store, read_record(store, "run", epoch))) == {"model.safetensors", "trainer.pt"}
        found_whole[store.root.partition(":")[0]] += 1
    assert set(store.list_folders("")) <= {"objects", "runs"}


def test_writers_finished_some_objects_before_they_were_killed() -> None:
    assert min(found_whole.values()) >= 5, found_whole


def write_forever(environment: dict[str, str], root: str, ready: Any) -> None:
    """Write checkpoints, and small and large objects named after their SHA-256, until killed."""
    os.environ.update(environment)
    store = open_store(root)
    store.check_conditional_writes()
    ready.set()
    epoch = 0
    while True:
        small, large = os.urandom(3 * 2**20), os.urandom(LARGE)
        store.create(f"objects/created/{hashlib.sha256(small).hexdigest()}", small)
        epoch += 1
        write_checkpoint(
            store,
            run_id="run",
            epoch=epoch,
            files={"model.safetensors": small, "trainer.pt": large},
            metrics={"loss": 1 / epoch},
            parameters={},
            data_version="tests",
        )
        with store.publish(f"objects/published/{hashlib.sha256(large).hexdigest()}") as stream:
            stream.write(large)
