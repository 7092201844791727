"""Take tables of the layout of before Delta Lake over into Delta tables. Old parts stay where they are.

    predictions/<table>/_batches.json                           the log of the batches, in the order of their plans
    predictions/<table>/batch=<id>/_plan.parquet
    predictions/<table>/batch=<id>/part-00017.parquet           rows of shard 17. The footer holds the shard's books
    predictions/<table>/batch=<id>/_errors/part-00017.parquet   its quarantine
    predictions/<table>/batch=<id>/_manifest.json               the commit marker of a batch

Every step can be repeated, and two processes can do it at once.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from infra.errors import JobError, JobStopped
from infra.provenance import Provenance
from infra.storage.format import MARKER, layout_of
from infra.storage.keys import (
    old_batch_folder,
    old_errors_key,
    old_log_key,
    old_manifest_key,
    old_part_key,
    old_plan_key,
    old_shard_of,
    plan_key,
    table_folder,
)
from infra.storage.object_store import ObjectNotFound, ObjectStore, SwapConflict
from infra.storage.tables.parts import PartFile, statistics_of
from infra.storage.tables.planning.batches import NumberedBatch, NumberTaken, list_batches, take_number
from infra.storage.tables.planning.plan import CHUNK_ROWS, PLAN_SCHEMA, BatchPlan
from infra.storage.uris import canonical_from_raw, percent_encode, real_folder

_AT_ONCE = 8
"""Objects read or written in parallel."""
_FOLDERS = 100_000
"""Folders whose symbolic links are resolved only once."""
_FRAGMENT = re.compile(r"(?s)#(row=[0-9]+|member=.*)\Z")
_MEMORY = "160MB"
"""Memory that DuckDB uses before it spills to disk."""

FILES_SCHEMA = pa.schema([("number", pa.int64()), ("uri", pa.string()), ("first_row", pa.int64())])


class TableChanged(JobError):
    """A run of an older version has changed the table during the upgrade."""


class OldBatch(BaseModel, frozen=True):
    """A batch in the old log."""

    batch: str
    model_version: str
    options: dict[str, Any]


class OldManifest(BaseModel):
    """The commit marker of an old batch."""

    model: dict[str, Any]
    """The registry's record of the version."""
    planned: int
    predicted: int
    quarantined: int
    parts: list[str]
    """Keys of the parts with predictions, relative to the store's root."""
    error_parts: list[str]
    """Keys of the parts with quarantined images, relative to the store's root."""
    seconds: float
    provenance: Provenance


class OldShard(BaseModel):
    """The books of a shard of an old batch, from the footer of its part."""

    shard: int
    planned: int
    predicted: int
    quarantined: int


@dataclass(frozen=True)
class OldLog:
    """The old log at the moment when it was read. Batches are numbered by their order, from 1."""

    table: str
    batches: list[OldBatch]
    etag: str


class _Log(BaseModel):
    batches: list[OldBatch]


def read_old_log(store: ObjectStore, table: str) -> OldLog | None:
    """Read the log of an old table, or return None if the table is not an old one.

    Raises:
        JobStopped: the log can't be parsed.
    """
    key = old_log_key(table)
    try:
        data, etag = store.read_with_etag(key)
    except ObjectNotFound:
        return None
    if layout_of(store, table, data) != "old":
        return None
    try:
        return OldLog(table, _Log.model_validate_json(data).batches, etag)
    except ValueError as error:
        raise JobStopped(f"{store.uri(key)} can't be parsed. Restore the object. {error}") from None


def finish_table(store: ObjectStore, log: OldLog) -> None:
    """Replace the log with the marker that stops old code. From now on, new code uses the table.

    Raises:
        TableChanged: the log isn't the one that was read, and not the marker either.
    """
    try:
        store.swap(old_log_key(log.table), MARKER, seen=log.etag)
    except SwapConflict:
        if read_old_log(store, log.table) is not None:
            raise TableChanged(
                f"A run of an older version of fmnist-jobs has changed table {log.table} of {store.root} during the "
                "upgrade. Stop it, and run the command again."
            ) from None


def read_manifests(store: ObjectStore, table: str, batches: Sequence[OldBatch]) -> list[OldManifest | None]:
    """Read the manifest of each batch, or None for batches that aren't committed."""

    def read(entry: OldBatch) -> OldManifest | None:
        try:
            return OldManifest.model_validate_json(store.read(old_manifest_key(table, entry.batch)))
        except ObjectNotFound:
            return None

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(read, batches))


class CanonicalUris:
    """Converts URIs of old tables, which aren't percent-encoded, to canonical ones."""

    def __init__(self) -> None:
        self._folder = lru_cache(_FOLDERS)(real_folder)

    def of_files(self, uris: pa.Array) -> pa.Array:
        """Convert URIs of files."""
        return self._each(partial(canonical_from_raw, resolve_folder=self._folder), uris)

    def of_images(self, uris: pa.Array) -> pa.Array:
        """Convert URIs of images, which may have a fragment."""
        return self._each(self._image, uris)

    def _image(self, uri: str) -> str:
        fragment = _FRAGMENT.search(uri)
        file = canonical_from_raw(uri[: fragment.start()] if fragment else uri, resolve_folder=self._folder)
        return f"{file}#{percent_encode(fragment[1])}" if fragment else file

    @staticmethod
    def _each(convert: Callable[[str], str], uris: pa.Array) -> pa.Array:
        encoded = uris.dictionary_encode()
        return pa.array([convert(uri) for uri in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)


def count_superseded(store: ObjectStore, log: OldLog, uris: CanonicalUris, scratch: Path) -> dict[int, int]:
    """Count the files of each batch of which an earlier batch of the same model holds another version.

    Files that a batch holds under two spellings count too, because only one of their rows is the newest.

    Returns:
        The counts that aren't zero, by number of the batch.
    """
    found: dict[int, int] = {}
    for version in {entry.model_version for entry in log.batches}:
        files = scratch / "files.parquet"
        with pq.ParquetWriter(files, FILES_SCHEMA, compression="lz4") as writer:
            for number, entry in enumerate(log.batches, 1):
                if entry.model_version == version:
                    for rows in _old_plan_rows(store, log.table, entry.batch, ["uri", "first_row"]):
                        columns = [
                            pa.repeat(number, len(rows)),
                            uris.of_files(rows.column("uri")),
                            rows.column("first_row"),
                        ]
                        writer.write_batch(pa.record_batch(columns, schema=FILES_SCHEMA))
        found |= _superseded_in(files, scratch)
        files.unlink()
    return found


def convert_plan(
    store: ObjectStore,
    table: str,
    entry: OldBatch,
    *,
    number: int,
    superseded: int,
    uris: CanonicalUris,
    scratch: Path,
) -> BatchPlan:
    """Write the plan of an old batch as a new one: the same id, shards and images, with canonical URIs.

    Raises:
        JobStopped: the old plan is missing.
    """
    before = _old_plan(store, table, entry.batch)
    plan = BatchPlan(
        table=table,
        batch=entry.batch,
        number=number,
        model_version=entry.model_version,
        options=entry.options,
        shards=before["shards"],
        planned=before["planned"],
        superseded=superseded,
    )
    local = scratch / f"{entry.batch}.parquet"
    with pq.ParquetWriter(local, PLAN_SCHEMA, compression="zstd") as writer:
        for rows in _old_plan_rows(store, table, entry.batch, PLAN_SCHEMA.names):
            columns = {name: rows.column(name) for name in PLAN_SCHEMA.names} | {
                "uri": uris.of_files(rows.column("uri")),
                "label": rows.column("label").cast(pa.int16()),
            }
            writer.write_batch(pa.record_batch(list(columns.values()), schema=PLAN_SCHEMA))
        writer.add_key_value_metadata({"fmnist_plan": plan.model_dump_json()})
    with store.publish(plan_key(table, plan.batch)) as stream, local.open("rb") as written:
        while block := written.read(2**20):
            stream.write(block)
    local.unlink()
    return plan


def known_numbers(store: ObjectStore, log: OldLog) -> set[int]:
    """Return the numbers that an earlier upgrade has given to batches of the log.

    Raises:
        JobStopped: another batch has one of the numbers.
    """
    found = {entry.number: entry.batch for entry in list_batches(store, log.table)}
    for number, entry in enumerate(log.batches, 1):
        if found.get(number, entry.batch) != entry.batch:
            raise _other_batch(log.table, number, entry.batch)
    return set(found)


def number_batch(store: ObjectStore, table: str, entry: OldBatch, number: int) -> None:
    """Give an old batch its number, unless another upgrade has done that.

    Raises:
        JobStopped: another batch has the number.
    """
    numbered = NumberedBatch(number=number, batch=entry.batch, model_version=entry.model_version, options=entry.options)
    try:
        take_number(store, table, numbered)
    except NumberTaken:
        found = {known.number: known.batch for known in list_batches(store, table)}
        if found[number] != entry.batch:
            raise _other_batch(table, number, entry.batch) from None


def committed_parts(store: ObjectStore, table: str, manifest: OldManifest) -> list[PartFile]:
    """Describe the parts of a committed batch for the Delta log, where they lie. Reads their footers only.

    Raises:
        JobStopped: a part is missing.
    """

    def describe(key: str) -> PartFile:
        found = store.stat(key)
        if found is None:
            raise JobStopped(f"{store.uri(key)} is missing, but its batch is committed. Restore the object.")
        filesystem, path = store.arrow(key)
        footer = pq.read_metadata(path, filesystem=filesystem)
        return PartFile(
            name=key.removeprefix(f"{table_folder(table)}/"),
            size=found.size,
            sha256="",
            etag=found.etag,
            rows=footer.num_rows,
            statistics=statistics_of(footer),
        )

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return [part for part in threads.map(describe, manifest.parts) if part.rows]


def finished_shards(store: ObjectStore, plan: BatchPlan) -> list[OldShard]:
    """Return the books of the shards that a run of an older version has finished, in a batch without a manifest."""
    folder = f"{old_batch_folder(plan.table, plan.batch)}/"
    found = (old_shard_of(stat.key.removeprefix(folder)) for stat in store.list(folder))
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        books = threads.map(partial(_old_books, store, plan), (n for n in found if n is not None and n < plan.shards))
        return [entry for entry in books if entry.predicted + entry.quarantined == entry.planned]


def old_rows(store: ObjectStore, key: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read an old Parquet object as a stream.

    Raises:
        JobStopped: the object is missing.
    """
    filesystem, path = store.arrow(key)
    try:
        file = pq.ParquetFile(path, filesystem=filesystem)
    except FileNotFoundError:
        raise JobStopped(f"{store.uri(key)} is missing. Restore the object.") from None
    with file:
        yield from file.iter_batches(CHUNK_ROWS, columns=columns)


def old_keys(plan: BatchPlan, shard: OldShard) -> tuple[str, str | None]:
    """Return the keys of a shard's old rows, and of its quarantine if it has one."""
    errors = old_errors_key(plan.table, plan.batch, shard.shard) if shard.quarantined else None
    return old_part_key(plan.table, plan.batch, shard.shard), errors


def _old_books(store: ObjectStore, plan: BatchPlan, shard: int) -> OldShard:
    filesystem, path = store.arrow(old_part_key(plan.table, plan.batch, shard))
    return OldShard.model_validate_json(pq.read_metadata(path, filesystem=filesystem).metadata[b"fmnist_books"])


def _old_plan(store: ObjectStore, table: str, batch: str) -> dict[str, Any]:
    filesystem, path = store.arrow(old_plan_key(table, batch))
    try:
        footer = pq.read_metadata(path, filesystem=filesystem)
    except FileNotFoundError:
        raise _no_plan(store, table, batch) from None
    content: dict[str, Any] = json.loads(footer.metadata[b"fmnist_plan"])
    return content


def _old_plan_rows(store: ObjectStore, table: str, batch: str, columns: list[str]) -> Iterable[pa.RecordBatch]:
    try:
        yield from old_rows(store, old_plan_key(table, batch), columns)
    except JobStopped:
        raise _no_plan(store, table, batch) from None


def _superseded_in(files: Path, scratch: Path) -> dict[int, int]:
    import duckdb

    with duckdb.connect(config={"memory_limit": _MEMORY, "temp_directory": str(scratch), "threads": 2}) as duck:
        duck.read_parquet(str(files)).create_view("pieces")
        rows = duck.execute(
            "WITH first AS (SELECT uri, min(number) AS number FROM pieces GROUP BY uri), "
            "again AS (SELECT DISTINCT pieces.number, uri FROM pieces JOIN first USING (uri) "
            "WHERE pieces.number > first.number "
            "UNION SELECT number, uri FROM pieces GROUP BY number, uri, first_row HAVING count(*) > 1) "
            "SELECT number, count(*) FROM again GROUP BY number"
        ).fetchall()
    return dict(rows)


def _no_plan(store: ObjectStore, table: str, batch: str) -> JobStopped:
    return JobStopped(f"{store.uri(old_plan_key(table, batch))} is missing. Restore the object.")


def _other_batch(table: str, number: int, batch: str) -> JobStopped:
    return JobStopped(
        f"Number {number} of table {table} belongs to another batch than {batch}. Remove the folder work/{table}, "
        "which the old layout doesn't have, and run the command again."
    )
