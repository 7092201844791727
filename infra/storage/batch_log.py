"""The log of a prediction table: its batches in the order in which they were planned.

    predictions/<table>/_batches.json    the table's only mutable object, replaced by compare-and-set

A planner reads the log, leaves out the images of all batches in it, and appends its own batch only if the log hasn't
changed. So an image is never in two batches of the same model, even if several planners run at once or the store's
listings lag behind.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from infra.storage.keys import batch_log_key
from infra.storage.object_store import ObjectNotFound, ObjectStore, SwapConflict
from infra.storage.prediction_table import BatchManifest, read_manifest
from infra.storage.retries import retry_on


class LoggedBatch(BaseModel):
    """A batch whose plan is in the store."""

    batch: str
    model_version: str
    options: dict[str, Any]
    committed: bool = False
    """Whether its manifest is known to exist. False may be out of date."""


class _Log(BaseModel):
    batches: list[LoggedBatch]


@dataclass(frozen=True)
class BatchLog:
    """The log at the moment when it was read."""

    table: str
    batches: list[LoggedBatch]
    etag: str | None
    """None if the table has no batches."""

    def of_model(self, model_version: str) -> list[LoggedBatch]:
        """Return the batches of one model version."""
        return [entry for entry in self.batches if entry.model_version == model_version]


def read_batch_log(store: ObjectStore, table: str) -> BatchLog:
    """Read a table's log. The log of a table that doesn't exist is empty."""
    try:
        data, etag = store.read_with_etag(batch_log_key(table))
    except ObjectNotFound:
        return BatchLog(table, [], None)
    return BatchLog(table, _Log.model_validate_json(data).batches, etag)


def append_batch(store: ObjectStore, log: BatchLog, entry: LoggedBatch) -> None:
    """Append a batch to the log that was read.

    Raises:
        SwapConflict: another process has changed the log.
    """
    _write(store, log, [*log.batches, entry])


@retry_on(SwapConflict, attempts=20, longest_wait_seconds=1)
def mark_committed(store: ObjectStore, table: str, batches: set[str]) -> None:
    """Mark batches whose manifests exist, so that later planners needn't check."""
    log = read_batch_log(store, table)
    if all(entry.committed for entry in log.batches if entry.batch in batches):
        return
    marked = [
        entry.model_copy(update={"committed": entry.committed or entry.batch in batches}) for entry in log.batches
    ]
    _write(store, log, marked)


def committed_batches(store: ObjectStore, table: str) -> list[BatchManifest]:
    """Read the manifests of all committed batches, in the order in which they were planned."""
    with ThreadPoolExecutor(8) as threads:
        batches = [entry.batch for entry in read_batch_log(store, table).batches]
        manifests = threads.map(lambda batch: read_manifest(store, table, batch), batches)
        return [manifest for manifest in manifests if manifest is not None]


def _write(store: ObjectStore, log: BatchLog, batches: list[LoggedBatch]) -> None:
    store.swap(batch_log_key(log.table), _Log(batches=batches).model_dump_json(indent=1).encode(), seen=log.etag)
