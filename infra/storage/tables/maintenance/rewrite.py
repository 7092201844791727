"""Rewrite committed parts and books: the common ground of compaction and deletion."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import JobError
from infra.storage.keys import books_folder, part_name
from infra.storage.object_store import ObjectStore, explained_delta
from infra.storage.tables.books import BOOKS_SCHEMA, BatchBooks
from infra.storage.tables.delta import DeltaSnapshot, TablePart, open_delta
from infra.storage.tables.parts import PartFile, PartWriter, open_part
from infra.storage.uris import percent_encode

_READ_ROWS = 65_536
MAX_BOOKS_FILES = 64
"""Files of a table's books before a commit merges them."""
"""Rows held in memory at a time."""

_OLD_BOOKS = b"fmnist_books"
"""Metadata of parts from before Delta Lake: the books of their shard."""

_RAW_FRAGMENT = re.compile(r"#(?:row=[0-9]+\Z|member=.*)", re.DOTALL)


class PartUnreadable(JobError):
    """A committed part can't be rewritten in the current schema."""


class MaintenanceBusy(JobError):
    """Other processes kept replacing parts of the table. Try again."""


def repeat_until_committed(store: ObjectStore, folder: str, attempt: Callable[[DeltaSnapshot], bool]) -> None:
    """Call `attempt` with a new snapshot until it returns True. Do nothing if there is no table.

    A file that is missing while `attempt` reads counts as a lost race if other maintenance has been committed since.

    Raises:
        MaintenanceBusy: other processes came first each time.
    """
    for _ in range(20):
        snapshot = open_delta(store, folder)
        if snapshot is None:
            return
        try:
            if attempt(snapshot):
                return
        except FileNotFoundError as error:
            now = open_delta(store, folder)
            if now is None or now.next_maintenance().version == snapshot.next_maintenance().version:
                raise PartUnreadable(
                    f"A part of {store.uri(folder)} is missing: {error}. Restore it from a backup."
                ) from None
    raise MaintenanceBusy(f"Other processes keep replacing parts of {store.uri(folder)}. Try again later.")


def read_part(
    store: ObjectStore, folder: str, part: TablePart, schema: pa.Schema, books: BatchBooks
) -> Iterator[pa.RecordBatch]:
    """Read a part in the current schema, as a stream.

    Args:
        store: store of the table.
        folder: folder of the Delta table.
        part: a part of that table. Those from before Delta Lake have other types, and lack `file_version` and
            `transform`.
        schema: current schema of the rows.
        books: books of the part's batch. They supply columns that the part doesn't have.

    Raises:
        PartUnreadable: the part lacks a column that the books don't have either.
        FileNotFoundError: the part is gone.
    """
    supplied: dict[str, Any] = {
        "file_version": books.number,
        "model_version": books.model_version,
        "transform": books.options.get("transform", 1),
    }
    filesystem, path = store.arrow(f"{folder}/{part.name}")
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        lacking = [field.name for field in schema if field.name not in {*file.schema_arrow.names, *supplied}]
        if lacking:
            raise PartUnreadable(f"{store.uri(f'{folder}/{part.name}')} has no column {lacking[0]!r}.")
        for rows in file.iter_batches(_READ_ROWS):
            columns = [
                canonical_images(rows) if field.name == "image" else _column(rows, field, supplied) for field in schema
            ]
            yield pa.record_batch(columns, schema=schema)


def canonical_images(rows: pa.RecordBatch) -> pa.Array:
    """Return the canonical URIs of the images in rows of a part.

    Args:
        rows: rows with `image` and, unless they are from before Delta Lake, `file_version`. Without it, their URIs have
            no percent-encoding.
    """
    images = rows.column("image")
    if "file_version" in rows.schema.names and not rows.column("file_version").null_count:
        return images
    return pa.array([_canonical(image) for image in images.to_pylist()], images.type)


def _canonical(raw: str) -> str:
    fragment = match[0] if (match := _RAW_FRAGMENT.search(raw)) else ""
    encoded = percent_encode(raw.removesuffix(fragment))
    return f"{encoded}#{percent_encode(fragment[1:])}" if fragment else encoded


def _column(rows: pa.RecordBatch, field: pa.Field, supplied: dict[str, Any]) -> pa.Array:
    if field.name not in rows.schema.names:
        plain = pa.types.is_dictionary(field.type)
        column = pa.repeat(pa.scalar(supplied[field.name], pa.string() if plain else field.type), len(rows))
    else:
        column = rows.column(field.name)
        if column.null_count and field.name in supplied:
            column = column.cast(pa.int32()).fill_null(supplied[field.name])
    if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
        column = column.cast(field.type.value_type).dictionary_encode()
    return column if column.type == field.type else column.cast(field.type)


def provenance_of(store: ObjectStore, folder: str, part: TablePart) -> dict[bytes, bytes]:
    """Return the metadata that a part has about the model that predicted."""
    filesystem, path = store.arrow(f"{folder}/{part.name}")
    metadata = pq.read_schema(path, filesystem=filesystem).metadata or {}
    return {name: value for name, value in metadata.items() if name != _OLD_BOOKS}


def write_rows(
    store: ObjectStore, folder: str, batch: str, schema: pa.Schema, rows: Iterable[pa.RecordBatch]
) -> list[PartFile]:
    """Write rows as one part under a name of its own, or none if there are no rows.

    Args:
        store: store of the table.
        folder: folder of the Delta table.
        batch: the batch that gets the part.
        schema: schema of the part, with its metadata.
        rows: the rows.
    """
    writer: PartWriter | None = None
    with ExitStack() as opened:
        for chunk in rows:
            if len(chunk) and writer is None:
                writer = opened.enter_context(open_part(store, folder, part_name(batch, 0, uuid4().hex[:12]), schema))
            if writer is not None:
                writer.write(chunk)
    return [writer.finished] if writer is not None else []


def rewrite_books(store: ObjectStore, table: str, change: Callable[[BatchBooks], BatchBooks]) -> bool:
    """Change books of committed batches, and keep all of them in one file.

    Batches that are committed meanwhile are not disturbed.

    Args:
        store: store of the table.
        table: name of the prediction table.
        change: returns the new books of a batch, or the same object if they stay.

    Returns:
        Whether anything was rewritten.
    """
    folder = books_folder(table)
    written: list[PartFile] = []

    def attempt(snapshot: DeltaSnapshot) -> bool:
        with explained_delta(store):
            rows = snapshot.table.to_pyarrow_table().to_pylist()
        before = [BatchBooks.from_row(table, row) for row in rows]
        after = [change(entry) for entry in before]
        files = [part.name for part in snapshot.parts()]
        if len(files) <= 1 and all(old is new for old, new in zip(before, after, strict=True)):
            return True
        # Not below `_parts/`, so that a vacuum removes it once it has been replaced.
        with open_part(store, folder, f"part-{uuid4()}.parquet", BOOKS_SCHEMA) as part:
            part.write(pa.RecordBatch.from_pylist([entry.to_row() for entry in after], schema=BOOKS_SCHEMA))
        written.append(part.finished)
        return snapshot.replace("", files, [part.finished], data_change=before != after)

    repeat_until_committed(store, folder, attempt)
    return bool(written)


def tidy_books(store: ObjectStore, table: str) -> None:
    """Rewrite the books into one file if there are many, so that reading them takes as long with 10,000 batches."""
    snapshot = open_delta(store, books_folder(table))
    if snapshot is not None and len(snapshot.parts()) > MAX_BOOKS_FILES:
        rewrite_books(store, table, lambda entry: entry)


def remove_replaced_books(store: ObjectStore, table: str, *, hours: float, dry_run: bool = False) -> Sequence[str]:
    """Remove the files of books that were replaced more than `hours` ago. Return their keys."""
    folder = books_folder(table)
    snapshot = open_delta(store, folder)
    if snapshot is None:
        return []
    retention = {"retention_hours": math.ceil(hours), "enforce_retention_duration": False}
    with explained_delta(store):
        # The log also names those that are gone.
        named = snapshot.table.vacuum(**retention, dry_run=True)
        names = sorted({f"{folder}/{name}" for name in named} & {stat.key for stat in store.list(f"{folder}/")})
        if names and not dry_run:
            snapshot.table.vacuum(**retention, dry_run=False)
    return names
