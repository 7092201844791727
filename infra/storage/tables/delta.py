"""Delta tables in the store, through delta-rs: open one, and commit a batch's parts exactly once.

A batch's id is the application transaction of its commit. Of concurrent commits of one batch, the log lets one
succeed. A later one is seen by looking for the transaction on the same snapshot.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.storage.object_store import ObjectStore, StoreUnavailable
from infra.storage.object_store.delta_errors import explained_delta
from infra.storage.tables.parts import PartFile

PARTITION = "batch"
"""The partition column of predictions and quarantine."""

MAINTENANCE = "maintenance"
"""Application transaction of all commits that remove something."""


def open_delta(store: ObjectStore, folder: str) -> Any | None:
    """Open the newest snapshot of a Delta table as a `deltalake.DeltaTable`, or return None if there is no table.

    Raises:
        StoreUnavailable, StoreMisconfigured: the store fails.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    location = store.delta(f"{folder}/")
    with explained_delta(store):
        try:
            return DeltaTable(location.uri, storage_options=location.storage_options)
        except TableNotFoundError:
            return None


def ensure_delta(store: ObjectStore, folder: str, schema: pa.Schema, *, name: str, description: str) -> Any:
    """Open a Delta table, and create it first if it doesn't exist.

    Args:
        store: store of the table.
        folder: folder of the table.
        schema: Arrow schema of its parts, without the partition column.
        name: name of the table.
        description: what a row is.

    Raises:
        StoreMisconfigured: the store ignores conditional writes.
        StoreUnavailable: the store is down.
    """
    from deltalake import DeltaTable

    table = open_delta(store, folder)
    if table is not None:
        return table
    store.check_conditional_writes()
    location = store.delta(f"{folder}/")
    with explained_delta(store):
        return DeltaTable.create(
            location.uri,
            schema=delta_schema(schema),
            mode="ignore",
            partition_by=[PARTITION],
            name=name,
            description=description,
            storage_options=location.storage_options,
        )


def delta_schema(schema: pa.Schema) -> Any:
    """Return the Delta schema of parts with an Arrow schema: dictionaries decoded, and `batch` as the last column."""
    from deltalake import Schema

    fields = [field.with_type(_plain(field.type)).with_metadata(_comment(field)) for field in schema]
    partition = pa.field(PARTITION, pa.string(), nullable=False, metadata={"comment": "id of the batch"})
    return Schema.from_arrow(pa.schema([*fields, partition]))


def holds_batch(table: Any, batch: str) -> bool:
    """Whether a snapshot of a Delta table has the commit of a batch."""
    return table is not None and table.transaction_version(batch) is not None


def add_batch(store: ObjectStore, folder: str, table: Any, batch: str, parts: Sequence[PartFile]) -> bool:
    """Commit a batch's parts, unless the table has the batch already. Return whether this call committed them.

    Args:
        store: store of the table.
        folder: folder of the table.
        table: snapshot of the table. Looking for the batch and committing it use this snapshot.
        batch: id of the batch.
        parts: all parts of the batch. A batch without parts is committed too.
    """
    return add_batches(store, folder, table, {batch: parts})


def add_batches(store: ObjectStore, folder: str, table: Any, batches: Mapping[str, Sequence[PartFile]]) -> bool:
    """Commit several batches at once, unless the table has one of them. Return whether this call committed them."""
    from deltalake import Transaction

    if any(holds_batch(table, batch) for batch in batches):
        return False
    actions = [add_action(batch, part) for batch, parts in batches.items() for part in parts]
    return _commit(store, folder, table, actions, [Transaction(app_id=batch, version=1) for batch in batches])


def replace_parts(
    store: ObjectStore,
    folder: str,
    table: Any,
    batch: str,
    removed: Sequence[str],
    added: Sequence[PartFile],
    *,
    data_change: bool,
) -> bool:
    """Replace parts in one commit, unless another process has replaced parts of this table since the snapshot.

    delta-rs doesn't check removals for conflicts. So all of them share one application transaction, whose number
    grows with each. Commits of new batches are not disturbed.

    Args:
        store: store of the table.
        folder: folder of the table.
        table: snapshot of the table, in which all of `removed` exist.
        batch: id of the batch that gets the added parts.
        removed: names of parts that leave the table. Their files stay.
        added: new parts.
        data_change: False if the rows stay the same and only their files change.

    Returns:
        Whether this call replaced the parts.
    """
    from deltalake.transaction import RemoveAction

    actions = pa.table(table.get_add_actions(flatten=True)).select(["path", "size_bytes", f"partition.{PARTITION}"])
    known = {path: (size, owner) for path, size, owner in zip(*(c.to_pylist() for c in actions.columns), strict=True)}
    now = int(time.time() * 1000)
    removals = [
        RemoveAction(
            path=name,
            data_change=data_change,
            deletion_timestamp=now,
            size=known[name][0],
            partition_values={PARTITION: known[name][1]},
        )
        for name in removed
    ]
    additions = [add_action(batch, part, data_change=data_change) for part in added]
    return _commit(store, folder, table, [*removals, *additions], [next_maintenance(table)])


def next_maintenance(table: Any) -> Any:
    """Return the transaction of the next commit that removes rows or files. Of two at once, one succeeds."""
    from deltalake import Transaction

    return Transaction(app_id=MAINTENANCE, version=(table.transaction_version(MAINTENANCE) or 0) + 1)


def add_action(batch: str, part: PartFile, *, data_change: bool = True) -> Any:
    """Describe a part for the Delta log."""
    from deltalake.transaction import AddAction

    return AddAction(
        path=part.name,
        size=part.size,
        partition_values={PARTITION: batch},
        modification_time=int(time.time() * 1000),
        data_change=data_change,
        stats=part.statistics,
    )


def part_names(table: Any) -> dict[str, list[str]]:
    """Return the names of the parts in a snapshot, by batch."""
    found: dict[str, list[str]] = {}
    actions = pa.table(table.get_add_actions(flatten=True)).select(["path", f"partition.{PARTITION}"])
    for path, batch in zip(*(column.to_pylist() for column in actions.columns), strict=True):
        found.setdefault(batch, []).append(path)
    return found


def open_dataset(table: Any, batches: Sequence[str] | None = None) -> Any:
    """Return rows as something DuckDB and pyarrow can stream: all rows, or those of some batches.

    Args:
        table: snapshot of the table.
        batches: ids of batches, or None for all.
    """
    partitions = None if batches is None else [(PARTITION, "in", list(batches))]
    return table.to_pyarrow_dataset(partitions=partitions)


def _commit(store: ObjectStore, folder: str, table: Any, actions: list[Any], transactions: list[Any]) -> bool:
    """Commit actions, unless one of the transactions has been committed. Return whether they were committed."""
    from deltalake import CommitProperties
    from deltalake.exceptions import CommitFailedError

    store.check_conditional_writes()
    try:
        with explained_delta(store):
            table.create_write_transaction(
                actions=actions,
                mode="append",
                schema=table.schema(),
                partition_by=[PARTITION],
                commit_properties=CommitProperties(app_transactions=transactions),
            )
    except (CommitFailedError, StoreUnavailable):
        # The answer to our own request may have been lost. Then delta-rs sends it again, and finds its own commit.
        now = open_delta(store, folder)
        if now is None or any(now.transaction_version(entry.app_id) != entry.version for entry in transactions):
            raise
        return False
    store.sync_delta(f"{folder}/", table.version(), files=False)
    return True


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_type)
    return kind


def _comment(field: pa.Field) -> dict[str, str]:
    description = (field.metadata or {}).get(b"description", b"").decode()
    return {"comment": description} if description else {}
