"""Delta tables in the store, through delta-rs: open one, and commit a batch's parts exactly once.

A batch's id is the application transaction of its commit. Of concurrent commits of one batch, the log lets one
succeed. A later one is seen by looking for the transaction on the same snapshot.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra.storage.object_store import ConnectionBroken, ObjectStore, StoreUnavailable, explained_delta
from infra.storage.retries import retry_on
from infra.storage.tables.parts import PartFile

PARTITION = "batch"
"""The partition column of predictions and quarantine."""
MAINTENANCE = "maintenance"
"""Application transaction of all commits that remove something."""

retry_broken = retry_on(ConnectionBroken, attempts=5, first_wait_seconds=0.1, longest_wait_seconds=2)
"""Decorates what may be done twice: reading a table, and committing a batch."""


@dataclass(frozen=True)
class TablePart:
    """A part in a snapshot of a Delta table."""

    name: str
    """Key relative to the folder of the table."""
    batch: str
    """Id of the batch in whose partition it is. Empty in a table without partitions."""
    size: int
    """Bytes."""
    rows: int
    first_image: str | None
    """A lower bound of the images' URIs. None if the log has none."""
    last_image: str | None
    """An upper bound of the images' URIs. None if the log has none."""


class DeltaSnapshot:
    """A snapshot of a Delta table. Commits look for conflicts with everything committed since."""

    def __init__(self, store: ObjectStore, folder: str, table: Any) -> None:
        self._store, self._folder = store, folder
        self.table = table
        """The `deltalake.DeltaTable`."""

    def holds(self, batch: str) -> bool:
        """Whether the commit of a batch is in the snapshot."""
        return self.table.transaction_version(batch) is not None

    def add(self, batches: Mapping[str, Sequence[PartFile]]) -> bool:
        """Commit batches, unless one of them has been committed. Return whether this call committed them.

        Args:
            batches: all parts of each batch by its id. A batch without parts is committed too.

        Raises:
            StoreUnavailable, StoreMisconfigured: the store fails.
        """
        from deltalake import Transaction

        if any(self.holds(batch) for batch in batches):
            return False
        actions = [add_action(batch, part) for batch, parts in batches.items() for part in parts]
        return self._commit(actions, [Transaction(app_id=batch, version=1) for batch in batches])

    def replace(self, batch: str, removed: Sequence[str], added: Sequence[PartFile], *, data_change: bool) -> bool:
        """Replace parts by new ones of one batch, see `replace_all`."""
        return self.replace_all(removed, {batch: added}, data_change=data_change)

    def replace_all(
        self, removed: Sequence[str], added: Mapping[str, Sequence[PartFile]], *, data_change: bool
    ) -> bool:
        """Replace parts, unless another process has replaced parts of this table since the snapshot.

        delta-rs doesn't check removals for conflicts. So all of them share one application transaction, whose number
        grows with each. Commits of new batches are not disturbed.

        Args:
            removed: names of parts that leave the table. Their files stay.
            added: new parts, by the id of the batch that gets them. Parts that were written for an older snapshot
                don't count: `fmnist store prune` may have removed them.
            data_change: False if the rows stay the same and only their files change.

        Returns:
            Whether this call replaced the parts. If not, start again from a new snapshot. It may show that they have
            been replaced after all, because the answer to a commit can get lost.
        """
        from deltalake.transaction import RemoveAction

        known, now = {part.name: part for part in self.parts()}, int(time.time() * 1000)
        removals = [
            RemoveAction(
                path=name,
                data_change=data_change,
                deletion_timestamp=now,
                size=known[name].size,
                partition_values={PARTITION: known[name].batch} if self._partitions else None,
            )
            for name in removed
        ]
        additions = [
            add_action(batch if self._partitions else None, part, data_change=data_change)
            for batch, parts in added.items()
            for part in parts
        ]
        return self._commit([*removals, *additions], [self.next_maintenance()])

    def next_maintenance(self) -> Any:
        """Return the transaction of the next commit that removes rows or files. Of two at once, one succeeds."""
        from deltalake import Transaction

        return Transaction(app_id=MAINTENANCE, version=(self.table.transaction_version(MAINTENANCE) or 0) + 1)

    def parts(self) -> "list[TablePart]":
        """Return the parts, in the order of their names."""
        actions = pa.table(self.table.get_add_actions(flatten=True))
        columns = [
            actions.column(name).to_pylist() if name in actions.column_names else [None] * len(actions)
            for name in ("path", f"partition.{PARTITION}", "size_bytes", "num_records", "min.image", "max.image")
        ]
        return sorted(
            (TablePart(name, batch or "", *numbers) for name, batch, *numbers in zip(*columns, strict=True)),
            key=lambda part: part.name,
        )

    def part_names(self) -> dict[str, list[str]]:
        """Return the names of the parts, by batch."""
        found: dict[str, list[str]] = {}
        for part in self.parts():
            found.setdefault(part.batch, []).append(part.name)
        return found

    def dataset(self, batches: Sequence[str] | None = None) -> Any:
        """Return the rows as a `pyarrow.dataset.Dataset`, which DuckDB reads too: all, or those of some batches."""
        partitions = None if batches is None else [(PARTITION, "in", list(batches))]
        return self.table.to_pyarrow_dataset(file_pruning_predicate=partitions)

    @property
    def _partitions(self) -> list[str]:
        """The partition columns. `batches/<table>` has none."""
        return list(self.table.metadata().partition_columns)

    def _commit(self, actions: list[Any], transactions: list[Any]) -> bool:
        from deltalake import CommitProperties
        from deltalake.exceptions import DeltaError

        self._store.check_conditional_writes()
        before = self.table.version()
        try:
            with explained_delta(self._store):
                self.table.create_write_transaction(
                    actions=actions,
                    mode="append",
                    schema=self.table.schema(),
                    partition_by=self._partitions,
                    commit_properties=CommitProperties(app_transactions=transactions),
                )
        except (DeltaError, StoreUnavailable):
            # The answer to our own request may have been lost. Then delta-rs sends it again, and finds its own commit.
            # Or the commit succeeded, and reading the new snapshot failed.
            now = open_delta(self._store, self._folder)
            if now is None or any(now.table.transaction_version(entry.app_id) is None for entry in transactions):
                raise
            if any(now.table.transaction_version(entry.app_id) < entry.version for entry in transactions):
                raise
            return False
        with explained_delta(self._store):
            self.table.update_incremental()  # delta-rs doesn't say which version it has created
        for version in range(before + 1, self.table.version() + 1):
            self._store.sync_delta(f"{self._folder}/", version, files=False)
        return True


@retry_broken
def open_delta(store: ObjectStore, folder: str) -> DeltaSnapshot | None:
    """Open the newest snapshot of a Delta table, or return None if there is no table.

    Raises:
        StoreUnavailable, StoreMisconfigured: the store fails.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    location = store.delta(f"{folder}/")
    try:
        with explained_delta(store):
            table = DeltaTable(location.uri, storage_options=location.storage_options)
    except TableNotFoundError:
        return None
    return DeltaSnapshot(store, folder, table)


def ensure_delta(
    store: ObjectStore, folder: str, schema: pa.Schema, *, name: str, description: str, is_partitioned: bool = True
) -> DeltaSnapshot:
    """Open a Delta table, and create it first if it doesn't exist.

    Args:
        store: store of the table.
        folder: folder of the table.
        schema: Arrow schema of its parts, without the partition column.
        name: name of the table.
        description: what a row is.
        is_partitioned: whether the table gets the partition column `batch`.

    Raises:
        StoreMisconfigured: the store ignores conditional writes.
        StoreUnavailable: the store is down.
    """
    from deltalake import CommitProperties, DeltaTable, Schema
    from deltalake.exceptions import DeltaError

    snapshot = open_delta(store, folder)
    if snapshot is not None:
        return snapshot
    store.check_conditional_writes()
    location = store.delta(f"{folder}/")
    try:
        with explained_delta(store):
            table = DeltaTable.create(
                location.uri,
                schema=delta_schema(schema) if is_partitioned else Schema.from_arrow(schema),
                partition_by=[PARTITION] if is_partitioned else [],
                name=name,
                description=description,
                storage_options=location.storage_options,
                # A retry would come after the other process's creation, and change the metadata once more.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
    except (DeltaError, StoreUnavailable):
        snapshot = open_delta(store, folder)
        if snapshot is None:
            raise
        return snapshot
    store.sync_delta(f"{folder}/", 0)
    return DeltaSnapshot(store, folder, table)


def delta_schema(schema: pa.Schema) -> Any:
    """Return the Delta schema of parts with an Arrow schema: dictionaries decoded, and `batch` as the last column."""
    from deltalake import Schema

    fields = [field.with_type(_plain(field.type)).with_metadata(_comment(field)) for field in schema]
    partition = pa.field(PARTITION, pa.string(), nullable=False, metadata={"comment": "id of the batch"})
    return Schema.from_arrow(pa.schema([*fields, partition]))


def add_action(batch: str | None, part: PartFile, *, data_change: bool = True) -> Any:
    """Describe a part for the Delta log. `batch` is None in a table without partitions."""
    from deltalake.transaction import AddAction

    return AddAction(
        path=part.name,
        size=part.size,
        partition_values={} if batch is None else {PARTITION: batch},
        modification_time=int(time.time() * 1000),
        data_change=data_change,
        stats=part.statistics,
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_type)
    return kind


def _comment(field: pa.Field) -> dict[str, str]:
    description = (field.metadata or {}).get(b"description", b"").decode()
    return {"comment": description} if description else {}
