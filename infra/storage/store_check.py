"""Check an object store: how it is configured, and whether it keeps the promises that the project relies on."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import JobError, RequestError
from infra.storage.keys import SCRATCH
from infra.storage.object_store import ObjectExists, ObjectStore, StoreMisconfigured, SwapConflict, explained_delta


@dataclass(frozen=True)
class CheckStep:
    """The result of one check."""

    name: str
    ok: bool | None
    """None if the check was skipped because the first one failed."""
    milliseconds: float
    reason: str = ""
    """Why it failed or was skipped."""


@dataclass(frozen=True)
class StoreReport:
    """A store's configuration and the results of its checks."""

    root: str
    settings: dict[str, str]
    """Configuration by the names that people use. Holds no secrets."""
    steps: list[CheckStep] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check succeeded."""
        return all(step.ok for step in self.steps)


def check_store(store: ObjectStore) -> StoreReport:
    """Write, read, list, create, swap and delete scratch objects and a scratch Delta table, and remove them.

    Takes about 75 requests on S3. Failures are in the report and raise nothing.
    """
    trial = _Trial(store)
    steps: list[CheckStep] = []
    for name, work in trial.steps():
        if steps and not steps[0].ok:
            steps.append(CheckStep(name, None, 0.0, f"{steps[0].name} failed"))
        else:
            steps.append(_try(name, work))
    if steps[0].ok:
        with suppress(RequestError, JobError, OSError):
            trial.clean()
    return StoreReport(store.root, store_settings(store.root), steps)


def store_settings(root: str) -> dict[str, str]:
    """Describe where a store is and how it is reached, without secrets and with a masked access key id."""
    return _s3_settings(root) if root.startswith("s3://") else _local_settings(root)


def masked(key_id: str) -> str:
    """Show only as much of an access key id as its owner needs to recognize it."""
    shown = 4 if len(key_id) >= 12 else 1
    return f"{key_id[:shown]}…{key_id[-shown:]}"


class _Trial:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._folder = f"{SCRATCH}{uuid4().hex}"
        self._data = os.urandom(256 * 1024)

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Return the checks in order. If the first one fails, the others can't succeed."""
        return [
            ("write", self._write),
            ("read back, SHA-256", self._read_back),
            ("list", self._list),
            ("conditional create", self._create),
            ("compare-and-set", self._swap),
            ("Parquet through pyarrow", self._parquet),
            ("Delta commit", self._delta),
            ("delete", self._delete),
        ]

    def clean(self) -> None:
        for found in list(self._store.list(f"{self._folder}/")):
            self._store.delete(found.key)

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _write(self) -> None:
        with self._store.publish(self._key("object")) as stream:
            stream.write(self._data)

    def _read_back(self) -> None:
        found = self._store.read(self._key("object"))
        if hashlib.sha256(found).digest() != hashlib.sha256(self._data).digest():
            raise JobError("An object was read back with other bytes than were written. Check the server.")

    def _list(self) -> None:
        found = [(stat.key, stat.size) for stat in self._store.list(f"{self._folder}/")]
        if found != [(self._key("object"), len(self._data))]:
            raise JobError(f"The listing shows {found} instead of the one object that was written. Check the server.")

    def _create(self) -> None:
        self._store.create(self._key("created"), b"first")
        with suppress(ObjectExists):
            self._store.create(self._key("created"), b"second")
            raise StoreMisconfigured(self._ignored("If-None-Match"))
        if self._store.read(self._key("created")) != b"first":
            raise StoreMisconfigured(self._ignored("If-None-Match"))

    def _swap(self) -> None:
        key = self._key("swapped")
        self._store.swap(key, b"first", seen=None)
        _, first = self._store.read_with_etag(key)
        self._store.swap(key, b"second", seen=first)
        with suppress(SwapConflict):
            self._store.swap(key, b"third", seen=first)
            raise StoreMisconfigured(self._ignored("If-Match"))
        if self._store.read(key) != b"second":
            raise StoreMisconfigured(self._ignored("If-Match"))

    def _parquet(self) -> None:
        table = pa.table({"number": pa.array(range(10_000))})
        filesystem, path = self._store.arrow(self._key("table.parquet"))
        pq.write_table(table, path, filesystem=filesystem)
        if not pq.read_table(path, filesystem=filesystem).equals(table):
            raise JobError("A Parquet file was read back with other rows than were written. Check the server.")

    def _delta(self) -> None:
        """Commit a transaction twice from the same version of a Delta table, and check that one commit is refused."""
        from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
        from deltalake.exceptions import CommitFailedError

        location = self._store.delta(f"{self._folder}/delta/")
        rows = pa.table({"number": [1, 2, 3]})
        once = CommitProperties(app_transactions=[Transaction("check", 1)])
        with explained_delta(self._store):
            write_deltalake(location.uri, rows, storage_options=location.storage_options)
            first, second = (DeltaTable(location.uri, storage_options=location.storage_options) for _ in range(2))
            write_deltalake(first, rows, mode="append", commit_properties=once)
            with suppress(CommitFailedError):
                write_deltalake(second, rows, mode="append", commit_properties=once)
                raise StoreMisconfigured(self._ignored("If-None-Match"))
            found = DeltaTable(location.uri, storage_options=location.storage_options)
            count = found.to_pyarrow_dataset().count_rows()
        if count != 2 * len(rows):
            raise JobError(f"A Delta table was read back with {count} rows instead of 6. Check the server.")

    def _delete(self) -> None:
        self.clean()
        if any(True for _ in self._store.list(f"{self._folder}/")):
            raise JobError(
                f"Deleted objects are still listed under {self._store.uri(self._folder)}/. Check the server."
            )

    def _ignored(self, what: str) -> str:
        return (
            f"The store {self._store.root} can't be used: it ignores conditional requests ({what}), so two runs could "
            "overwrite each other's models unnoticed. Use a server that honours them, such as AWS, Ceph or MinIO."
        )


def _try(name: str, work: Callable[[], None]) -> CheckStep:
    started = time.perf_counter()
    reason = ""
    try:
        work()
    except (RequestError, JobError, OSError) as error:  # OSError: pyarrow's own S3 client
        reason = " ".join(str(error).split())[:500] or type(error).__name__
    return CheckStep(name, not reason, round(1000 * (time.perf_counter() - started), 1), reason)


def _local_settings(root: str) -> dict[str, str]:
    folder = Path(root.removeprefix("file://"))
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    return {
        "kind": "folder on this machine",
        "folder": f"{folder}{'' if folder.exists() else ' (created by the first write)'}",
        "free": f"{free / 1e9:,.1f} GB",
    }


def _s3_settings(root: str) -> dict[str, str]:
    from botocore.exceptions import BotoCoreError, ClientError

    from infra.storage.object_store.s3_configuration import CONNECT_TIMEOUT_SECONDS, s3_connection
    from infra.storage.object_store.s3_errors import explain

    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    settings = {"kind": "S3", "bucket": bucket, "prefix": prefix or "none"}
    try:
        connection = s3_connection()
        configuration = connection.configuration
        settings |= {
            "endpoint": connection.endpoint,
            "region": configuration.region,
            "addressing": configuration.addressing_style,
            "profile": configuration.profile or "none",
            "retries": f"{configuration.retry_mode} mode, {configuration.max_attempts} attempts",
            "timeouts": f"{CONNECT_TIMEOUT_SECONDS} s to connect, {configuration.read_timeout_seconds:g} s for a byte",
            "checksums": configuration.checksum_mode,
            "credentials": connection.credentials_source,
        }
        settings["access key id"] = masked(connection.access_key_id)
    except (BotoCoreError, ClientError) as error:
        settings["credentials"] = explain(error, bucket=bucket, endpoint=settings.get("endpoint", "the server"))
    return settings
