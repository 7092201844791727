"""The version of the store's layout, and how new and old code keep away from each other's tables.

    format.json                           the version of the layout, created on condition
    predictions/<table>/_batches.json     the log of a table of before Delta Lake, or a marker that stops old code

Old code plans by `_batches.json`. So the marker is an object that old code can't parse, and it is created before the
first batch of a table gets its number. Either a new planner creates the marker, or an old planner creates its log.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from infra.errors import JobStopped, RequestError
from infra.provenance import Provenance
from infra.storage.keys import FORMAT, PREDICTIONS, old_log_key, table_folder
from infra.storage.object_store import ObjectExists, ObjectNotFound, ObjectStore

FORMAT_VERSION = 2
"""The version that this code reads and writes. Version 1 had no `format.json` and no Delta tables."""

UPGRADE_COMMAND = "fmnist store upgrade"
MARKER = json.dumps(
    {"format": FORMAT_VERSION, "moved": "This table is a Delta Lake table. Upgrade fmnist-jobs to read it."}
).encode()
"""Content of `_batches.json` that old code can't parse."""

TableLayout = Literal["old", "delta", "absent"]


class NewerFormat(RequestError):
    """A newer version of fmnist-jobs has written the store."""


class OldTable(RequestError):
    """The table has the layout of before Delta Lake."""


class StoreFormat(BaseModel):
    """The content of `format.json`."""

    format: int
    provenance: Provenance


def check_format(store: ObjectStore) -> None:
    """Refuse a store of a newer layout.

    Raises:
        NewerFormat: this code doesn't know the layout.
        JobStopped: `format.json` can't be parsed.
    """
    _read_format(store)


def check_table(store: ObjectStore, table: str) -> None:
    """Refuse a store of a newer layout, and a table of an older one.

    Raises:
        NewerFormat: this code doesn't know the layout.
        OldTable: the table has the layout of before Delta Lake.
    """
    check_format(store)
    if table_layout(store, table) == "old":
        raise _old_table(store, table)


def claim_table(store: ObjectStore, table: str) -> None:
    """Stop old code from writing into a table. Call this before the table's first batch gets its number.

    Raises:
        NewerFormat: this code doesn't know the layout.
        OldTable: the table has the layout of before Delta Lake.
    """
    try:
        store.create(old_log_key(table), MARKER)
    except ObjectExists:
        check_table(store, table)
        return
    ensure_format(store)


def ensure_format(store: ObjectStore) -> None:
    """Refuse a store of a newer layout. Write `format.json` if the store has none and holds no old tables.

    Raises:
        NewerFormat: this code doesn't know the layout.
    """
    if _read_format(store) is None and next(old_tables(store), None) is None:
        write_format(store)


def write_format(store: ObjectStore) -> None:
    """Create `format.json`, if the store has none."""
    record = StoreFormat(format=FORMAT_VERSION, provenance=Provenance.now())
    try:
        store.create(FORMAT, record.model_dump_json(indent=1).encode())
    except ObjectExists:
        check_format(store)


def has_format(store: ObjectStore) -> bool:
    """Whether the store has a `format.json`.

    Raises:
        NewerFormat: this code doesn't know the layout.
    """
    return _read_format(store) is not None


def old_tables(store: ObjectStore) -> Iterator[str]:
    """Find the tables of before Delta Lake, in the order of their names."""
    return (table for table in store.list_folders(PREDICTIONS) if table_layout(store, table) == "old")


def table_layout(store: ObjectStore, table: str) -> TableLayout:
    """Return the layout of a table.

    Raises:
        NewerFormat: the table has a newer layout.
        JobStopped: `_batches.json` can't be parsed.
    """
    try:
        data = store.read(old_log_key(table))
    except ObjectNotFound:
        return "absent"
    return layout_of(store, table, data)


def layout_of(store: ObjectStore, table: str, data: bytes) -> TableLayout:
    """Return the layout of a table by the content of its `_batches.json`.

    Raises:
        NewerFormat: the table has a newer layout.
        JobStopped: `data` can't be parsed.
    """
    content = _parsed(data)
    if "batches" in content:
        return "old"
    version = content.get("format")
    if not isinstance(version, int):
        raise JobStopped(
            f"{store.uri(old_log_key(table))} can't be parsed. Restore the object, or classify into another table."
        )
    _check_version(store, version, table_folder(table))
    return "delta"


def _old_table(store: ObjectStore, table: str) -> OldTable:
    return OldTable(
        f"Table {table} in {store.root} has the layout of an older version. Run `{UPGRADE_COMMAND}`, which turns it "
        "into a Delta Lake table."
    )


def _read_format(store: ObjectStore) -> int | None:
    try:
        version = _parsed(store.read(FORMAT)).get("format")
    except ObjectNotFound:
        return None
    if not isinstance(version, int):
        raise JobStopped(f"{store.uri(FORMAT)} can't be parsed. Restore the object.")
    _check_version(store, version, FORMAT)
    return version


def _check_version(store: ObjectStore, version: int, key: str) -> None:
    if version > FORMAT_VERSION:
        raise NewerFormat(
            f"{store.uri(key)} has format {version}, but this version of fmnist-jobs only knows formats up to "
            f"{FORMAT_VERSION}. Upgrade fmnist-jobs."
        )


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
