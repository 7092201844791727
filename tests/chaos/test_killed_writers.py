"""Kill writers at random moments, in a folder and on S3. Everything a reader then finds is complete."""

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
"""Bytes; sent to S3 in three parts."""

# Children are forked from a server that has imported what they need, which spares each of them a second.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "boto3"])

found_whole = {"file": 0, "s3": 0}


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    if request.param == "file":
        return open_store(tmp_path.as_uri())
    server: S3Server = request.getfixturevalue("ceph_or_moto")
    server.use(monkeypatch)
    return open_store(f"s3://{server.bucket}/killed-{uuid4().hex[:8]}")


@pytest.mark.rounds(full=50, short=50)
def test_killed_upload_leaves_nothing_that_a_reader_takes_for_whole(store: ObjectStore, seed: int) -> None:
    begun = PROCESSES.Event()
    writer = PROCESSES.Process(target=write_for_ever, args=(dict(os.environ), store.root, begun))
    writer.start()
    try:
        assert begun.wait(60)
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


def test_writers_lived_long_enough_for_the_test_to_mean_something() -> None:
    assert min(found_whole.values()) >= 5, found_whole


def write_for_ever(environment: dict[str, str], root: str, begun: Any) -> None:
    """Write checkpoints, and objects small and large whose keys tell their bytes, until killed."""
    os.environ.update(environment)
    store = open_store(root)
    store.check_conditional_writes()
    begun.set()
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
