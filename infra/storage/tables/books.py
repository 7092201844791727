"""The books of a table: what became of each batch, and what made its rows.

    batches/<table>/    a Delta table with one row per batch

A batch's row is committed before its predictions. So every batch that `predictions/<table>` holds has its books.
"""

import json
from collections.abc import Sequence
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel

from infra.provenance import Provenance
from infra.storage.keys import PREDICTIONS, books_folder, table_folder
from infra.storage.object_store import ObjectStore, StoreUnavailable, explained_delta
from infra.storage.retries import retry_on
from infra.storage.tables.delta import DeltaSnapshot, ensure_delta, open_delta, retry_broken
from infra.storage.tables.records import ConfusionCell, PredictionSummary, Reason

BOOKS_SCHEMA = pa.schema(
    [
        pa.field("batch", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("run_id", pa.string()),
        pa.field("weights_sha256", pa.string()),
        pa.field("temperature", pa.float64()),
        pa.field("options", pa.string(), nullable=False),
        pa.field("plan_digest", pa.string()),
        pa.field("shards", pa.int32(), nullable=False),
        pa.field("planned", pa.int64(), nullable=False),
        pa.field("predicted", pa.int64(), nullable=False),
        pa.field("quarantined", pa.int64(), nullable=False),
        pa.field("superseded", pa.int64(), nullable=False),
        pa.field("is_retry", pa.bool_()),
        pa.field(
            "reasons",
            pa.list_(
                pa.struct(
                    [("kind", pa.string()), ("reason", pa.string()), ("images", pa.int64()), ("example", pa.string())]
                )
            ),
        ),
        pa.field("class_counts", pa.list_(pa.int64())),
        pa.field("confidence_sums", pa.list_(pa.float64())),
        pa.field("confidence_histogram", pa.list_(pa.int64())),
        pa.field(
            "confusion",
            pa.list_(pa.struct([("label", pa.int16()), ("predicted", pa.int16()), ("images", pa.int64())])),
        ),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("created_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("created_by", pa.string(), nullable=False),
        pa.field("compacted_into", pa.string()),
    ]
)
"""One batch per row. `options` is JSON. `superseded` counts files of which an earlier batch holds another version.
`is_retry` says whether the batch tries quarantined images again, and is null in batches from before Delta Lake.
`compacted_into` is the batch in whose partition the rows are, or null if they are in their own."""

_SUMMARY = ("class_counts", "confidence_sums", "confidence_histogram")
_CONVERTED = frozenset((*_SUMMARY, "confusion", "options", "reasons", "code_version", "created_at", "created_by"))
_PLAIN = [name for name in BOOKS_SCHEMA.names if name not in _CONVERTED]


class BatchBooks(BaseModel):
    """All that is known about a committed batch: `predicted + quarantined == planned`."""

    table: str
    batch: str
    number: int
    """Number of the batch in its table, from 1."""
    model: str | None = None
    """Name of the model."""
    model_version: str
    run_id: str | None = None
    """The training run of the version."""
    weights_sha256: str | None = None
    temperature: float | None = None
    options: dict[str, Any]
    plan_digest: str | None = None
    shards: int
    planned: int
    predicted: int
    quarantined: int
    superseded: int = 0
    """Number of its files of which an earlier batch of this model holds another version."""
    is_retry: bool | None = None
    """Whether its files had images in quarantine that were tried again."""
    reasons: list[Reason] = []
    """Reasons of quarantine, the most frequent first."""
    summary: PredictionSummary = PredictionSummary()
    seconds: float
    """Time from the start of the first shard to the end of the last, in the run that finished the batch."""
    provenance: Provenance
    compacted_into: str | None = None
    """The batch in whose partition a compaction has put the rows. None: they are in their own."""

    @property
    def images_per_second(self) -> float:
        """Throughput of the run that finished the batch."""
        return (self.predicted + self.quarantined) / self.seconds if self.seconds else 0.0

    def to_row(self) -> dict[str, Any]:
        """Return the batch as a row of `BOOKS_SCHEMA`."""
        summary = self.summary.model_dump()
        return (
            {name: getattr(self, name) for name in _PLAIN}
            | {name: summary[name] for name in (*_SUMMARY, "confusion")}
            | self.provenance.model_dump()
            | {
                "options": json.dumps(self.options, sort_keys=True),
                "reasons": [reason.model_dump() for reason in self.reasons],
            }
        )

    @classmethod
    def from_row(cls, table: str, row: dict[str, Any]) -> Self:
        """Read a row that `to_row` wrote."""
        return cls(
            table=table,
            options=json.loads(row["options"]),
            reasons=[Reason(**reason) for reason in row["reasons"] or []],
            summary=PredictionSummary(
                **{name: row[name] or [] for name in _SUMMARY},
                confusion=[ConfusionCell(**cell) for cell in row["confusion"] or []],
            ),
            provenance=Provenance(
                created_at=row["created_at"], created_by=row["created_by"], code_version=row["code_version"]
            ),
            **{name: row[name] for name in _PLAIN},
        )


def list_tables(store: ObjectStore) -> list[str]:
    """List the names of all tables, in order."""
    return list(store.list_folders(PREDICTIONS))


class BooksChanged(StoreUnavailable):
    """Another process has merged the small files of a table of books at the same moment."""


@retry_on(BooksChanged, attempts=10, first_wait_seconds=0.1, longest_wait_seconds=2)
def write_books(store: ObjectStore, books: Sequence[BatchBooks]) -> bool:
    """Commit the books of batches of one table that have none yet. Return whether this call committed them all.

    Raises:
        BooksChanged: other processes have replaced files of the table again and again.
        StoreUnavailable, StoreMisconfigured: the store fails.
    """
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    folder = books_folder(books[0].table)
    snapshot = ensure_delta(
        store,
        folder,
        BOOKS_SCHEMA,
        name=f"batches of {books[0].table}",
        description="The books of each batch of a prediction table",
        is_partitioned=False,
    )
    new = [entry for entry in books if not snapshot.holds(entry.batch)]
    if not new:
        return False
    committed = len(new) == len(books)
    try:
        with explained_delta(store):
            write_deltalake(
                snapshot.table,
                pa.Table.from_pylist([entry.to_row() for entry in new], schema=BOOKS_SCHEMA),
                mode="append",
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(app_id=entry.batch, version=1) for entry in new]
                ),
            )
    except (DeltaError, StoreUnavailable) as error:
        # Another run committed them, or the answer to our own request was lost.
        committed = False
        after = open_delta(store, folder)
        if after is None or not all(after.holds(entry.batch) for entry in new):
            if isinstance(error, CommitFailedError):
                raise BooksChanged(
                    f"The books of {books[0].table} could not be written, because another process has changed the "
                    "table of books. Run it again."
                ) from error
            raise
    after = open_delta(store, folder)
    if after is not None:
        store.sync_delta(f"{folder}/", after.table.version())
    return committed


def replace_books(store: ObjectStore, books: BatchBooks) -> None:
    """Replace the row of a batch whose predictions aren't committed yet, if its counts have changed.

    They change if a run was killed before it committed the predictions, and parts were damaged after that.

    Raises:
        StoreUnavailable: another process has changed the table at the same moment.
    """
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError

    folder = books_folder(books.table)
    snapshot = open_delta(store, folder)
    before = _find_row(store, snapshot, books.table, books.batch) if snapshot else None
    if snapshot is None or before is None or _counts(before) == _counts(books):
        return
    version = snapshot.table.transaction_version(books.batch) or 0
    try:
        with explained_delta(store):
            write_deltalake(
                snapshot.table,
                pa.Table.from_pylist([books.to_row()], schema=BOOKS_SCHEMA),
                mode="overwrite",
                predicate=f"batch = '{books.batch}'",
                commit_properties=CommitProperties(
                    app_transactions=[
                        Transaction(app_id=books.batch, version=version + 1),
                        snapshot.next_maintenance(),
                    ]
                ),
            )
    except CommitFailedError as error:
        raise StoreUnavailable(
            f"The books of batch {books.batch} of {books.table} could not be replaced, because another process has "
            "changed the table of books. Run it again."
        ) from error
    store.sync_delta(f"{folder}/", snapshot.table.version())


@retry_broken
def find_books(store: ObjectStore, table: str, batch: str) -> BatchBooks | None:
    """Read the books of one batch, committed or not, or return None if there are none."""
    snapshot = open_delta(store, books_folder(table))
    return _find_row(store, snapshot, table, batch) if snapshot else None


def _find_row(store: ObjectStore, snapshot: DeltaSnapshot, table: str, batch: str) -> BatchBooks | None:
    from deltalake import QueryBuilder

    query = f"SELECT * FROM books WHERE batch = '{batch}'"  # noqa: S608 (names of batches have no quotes)
    with explained_delta(store):
        rows = pa.table(QueryBuilder().register("books", snapshot.table).execute(query)).to_pylist()
    return BatchBooks.from_row(table, rows[0]) if rows else None


def _counts(books: BatchBooks) -> tuple[Any, ...]:
    return books.predicted, books.quarantined, books.reasons, books.summary


@retry_broken
def read_books(store: ObjectStore, table: str) -> list[BatchBooks]:
    """Read the books of all committed batches, in the order in which they were planned."""
    from deltalake import QueryBuilder

    predictions, snapshot = open_delta(store, table_folder(table)), open_delta(store, books_folder(table))
    if predictions is None or snapshot is None:
        return []
    with explained_delta(store):
        # Takes a third of the time of `to_pyarrow_table`, because there is one small file per batch.
        rows = pa.table(QueryBuilder().register("books", snapshot.table).execute("SELECT * FROM books")).to_pylist()
    # `holds` takes longer the more batches there are, and few committed batches have no rows.
    with_rows = predictions.part_names()
    found = [
        BatchBooks.from_row(table, row)
        for row in rows
        if row["batch"] in with_rows or row.get("compacted_into") or predictions.holds(row["batch"])
    ]
    return sorted(found, key=lambda entry: entry.number)
