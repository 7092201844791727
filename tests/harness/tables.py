"""Read tables as any Delta reader does, and check them against their plans, books and records."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage.keys import quarantine_folder, records_folder, table_folder
from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import read_books
from infra.storage.tables.delta import open_delta
from infra.storage.tables.planning.batches import NumberedBatch, list_batches
from infra.storage.tables.planning.plan import plan_files
from infra.storage.tables.records import ShardRecord


def read_predictions(store: ObjectStore, table: str, columns: list[str]) -> pa.Table:
    """Read all rows of a prediction table."""
    snapshot = open_delta(store, table_folder(table))
    assert snapshot is not None
    return snapshot.dataset().to_table(columns=columns)


def images_by_batch(store: ObjectStore, folder: str) -> dict[str, list[str]]:
    """Return the images of each batch in the Delta table under `folder`."""
    snapshot = open_delta(store, folder)
    found: dict[str, list[str]] = {}
    if snapshot is not None:
        rows = snapshot.dataset().to_table(columns=["batch", "image"])
        for batch, image in zip(rows["batch"].to_pylist(), rows["image"].to_pylist(), strict=True):
            found.setdefault(batch, []).append(image)
    return found


def file_of(image: str) -> str:
    """Return the URI of the file that holds an image."""
    return image.partition("#")[0]


def planned_files(store: ObjectStore, table: str, batch: str) -> Counter[str]:
    """Return the number of images that a batch's plan has of each file."""
    with _local_plans(store, table, [batch]) as [plan]:
        columns = pq.read_table(plan, columns=["uri", "rows"]).to_pydict()
    planned = Counter[str]()
    for uri, rows in zip(columns["uri"], columns["rows"], strict=True):
        planned[uri] += rows
    return planned


def digests_of_parts(store: ObjectStore, table: str) -> dict[str, str]:
    """Return the SHA-256 of each part of the committed batches as it is in the store now, by key."""
    committed = {books.batch for books in read_books(store, table)}
    found = {}
    for folder in (table_folder(table), quarantine_folder(table)):
        snapshot = open_delta(store, folder)
        parts = snapshot.part_names() if snapshot else {}
        for name in (name for batch, names in parts.items() if batch in committed for name in names):
            found[f"{folder}/{name}"] = hashlib.sha256(store.read(f"{folder}/{name}")).hexdigest()
    return found


def all_records(store: ObjectStore, table: str, batch: str) -> list[ShardRecord]:
    """Read all records of a batch, including those that a successor replaces."""
    keys = [stat.key for stat in store.list(f"{records_folder(table, batch)}/")]
    return [ShardRecord.model_validate_json(store.read(key)) for key in keys]


def check_plans(store: ObjectStore, table: str) -> None:
    """Check that no image of a file's version is planned twice for a model."""
    by_model: dict[str, list[NumberedBatch]] = {}
    for entry in list_batches(store, table):
        by_model.setdefault(entry.model_version, []).append(entry)
    for entries in by_model.values():
        with _local_plans(store, table, [entry.batch for entry in entries]) as plans:
            pieces = Counter(
                (piece["uri"], piece["fingerprint"], piece["first_row"])
                for plan in plans
                for piece in pq.read_table(plan).to_pylist()
            )
        assert max(pieces.values()) == 1


def check_committed_batches(store: ObjectStore, table: str) -> None:
    """Check that every image of a committed batch is in one row, that the books are right, and the parts intact."""
    books = read_books(store, table)
    predicted = images_by_batch(store, table_folder(table))
    quarantined = images_by_batch(store, quarantine_folder(table))
    assert predicted.keys() <= {entry.batch for entry in books}
    for entry in books:
        rows, rejected = predicted.get(entry.batch, []), quarantined.get(entry.batch, [])
        assert (len(rows), len(rejected)) == (entry.predicted, entry.quarantined)
        assert len({*rows, *rejected}) == len(rows) + len(rejected) == entry.planned
        assert Counter(map(file_of, [*rows, *rejected])) == planned_files(store, table, entry.batch)
        assert sum(reason.images for reason in entry.reasons) == entry.quarantined
        assert sum(entry.summary.class_counts) == entry.predicted
    check_parts(store, table)


def check_parts(store: ObjectStore, table: str) -> None:
    """Check that the parts of committed batches have the bytes that their records name."""
    recorded = {
        f"{folder}/{part.name}": part.sha256
        for books in read_books(store, table)
        for record in all_records(store, table, books.batch)
        for folder, parts in (
            (table_folder(table), record.parts),
            (quarantine_folder(table), record.quarantine),
        )
        for part in parts
    }
    for key, sha256 in digests_of_parts(store, table).items():
        assert recorded[key] == sha256, key


@contextmanager
def _local_plans(store: ObjectStore, table: str, batches: list[str]) -> Iterator[list[Path]]:
    with TemporaryDirectory() as scratch:
        yield plan_files(store, table, batches, Path(scratch))
