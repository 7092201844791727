"""The newest rows of a prediction table: one row per image and model version.

A file that has changed is classified again, and its new rows come with a higher `file_version`. Only the rows of a
file's newest version count. So the images that a file has lost don't count any more, and a prediction doesn't count if
the file's newer version is in quarantine.
"""

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from infra.errors import JobError
from infra.settings import load_settings
from infra.storage.keys import books_folder, quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore, explained_delta
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.delta import PARTITION, DeltaSnapshot, open_delta

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MEMORY = "512MB"
"""Memory that DuckDB uses before it spills to disk."""
_THREADS = 4
_PLANNED_ID = re.compile(r"\d{8,}-.*")
"""The id of a batch that was planned as a Delta table. Ids of migrated batches don't contain their number."""


class PartUnreadable(JobError):
    """A part is damaged."""


@dataclass(frozen=True)
class TableSources:
    """The three Delta tables of a prediction table, as SQL that can follow `FROM`."""

    predictions: str
    quarantine: str
    books: str

    @classmethod
    def of(cls, table: str, source: Callable[[str], str]) -> Self:
        """Make the source of each Delta table from its folder in the store."""
        return cls(source(table_folder(table)), source(quarantine_folder(table)), source(books_folder(table)))


def newest_query(
    sources: TableSources, *, is_migrated: bool, model_version: str | None = None, in_quarantine: bool = False
) -> str:
    """Return the DuckDB query of a table's newest rows, without a semicolon.

    Args:
        sources: where the query reads from.
        is_migrated: whether the table has batches from before Delta Lake (`has_migrated`).
        model_version: select the rows of one model version only.
        in_quarantine: select quarantined images instead of predictions.
    """
    version = None if model_version is None else sql_text(model_version)
    bodies = {
        name: _migrated(source, sources.books, version) if is_migrated else _simple(source, version)
        for name, source in (("predicted", sources.predictions), ("quarantined", sources.quarantine))
    }
    return _QUERY.format(
        **bodies,
        table="quarantined" if in_quarantine else "predicted",
        columns="found.* EXCLUDE (batch_number)" if is_migrated else "found.*",
        order="batch_number" if is_migrated else "batch",
    )


def has_migrated(batches: Collection[BatchBooks]) -> bool:
    """Whether some batches are from before Delta Lake. Their rows have no `file_version`."""
    return not all(_PLANNED_ID.fullmatch(books.batch) for books in batches)


@contextmanager
def newest_rows(
    store: ObjectStore, table: str, batches: Collection[BatchBooks], model_version: str | None = None
) -> Iterator["DuckDBPyConnection"]:
    """Open a DuckDB connection with the views `newest` and `newest_quarantine`.

    DuckDB streams the rows, and spills to disk what doesn't fit into its memory.

    Args:
        store: store of the table.
        table: name of the prediction table.
        batches: the books of its committed batches.
        model_version: show the rows of one model version only.

    Raises:
        ObjectNotFound, PartUnreadable: a part is missing or damaged.
        StoreUnavailable, StoreMisconfigured: the store fails.
    """
    import duckdb

    folder = load_settings().state_dir
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="query-", dir=folder) as scratch,
        explained_delta(store),
        explained_scan(store, table),
    ):
        settings: dict[str, Any] = {"memory_limit": _MEMORY, "temp_directory": scratch, "threads": _THREADS}
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET preserve_insertion_order = false")
            for name, rows in _datasets(store, table, batches).items():
                connection.register(name, rows)
            for view, query in _queries(store, table, batches, model_version).items():
                connection.execute(f"CREATE TEMP VIEW {view} AS {query}")
            yield connection


def counts_are_newest(store: ObjectStore, table: str, batches: Collection[BatchBooks]) -> Mapping[str, bool]:
    """Find the model versions of which every row is the newest one, so that the books' counts hold.

    It doesn't read any rows. The number of rows by batch is in the Delta log.

    Returns:
        Whether the counts of the books hold, by model version.
    """
    predicted = _rows_by_batch(open_delta(store, table_folder(table)))
    quarantined = _rows_by_batch(open_delta(store, quarantine_folder(table)))
    found: dict[str, bool] = {}
    for version in {books.model_version for books in batches}:
        same = [books for books in batches if books.model_version == version]
        found[version] = (
            not any(books.superseded for books in same)
            and all(sum(books.summary.class_counts) == books.predicted for books in same)
            # Compaction moves rows between the batches of a model, and deletion removes some.
            and sum(predicted.get(books.batch, 0) for books in same) == sum(books.predicted for books in same)
            and sum(quarantined.get(books.batch, 0) for books in same) == sum(books.quarantined for books in same)
        )
    return found


def _queries(
    store: ObjectStore, table: str, batches: Collection[BatchBooks], model_version: str | None
) -> dict[str, str]:
    """Return the query of each view. If every row is the newest one, it is a scan, which needs no memory."""
    newest = counts_are_newest(store, table, batches)
    versions = newest if model_version is None else {model_version}
    migrated = has_migrated(batches)
    if not migrated and all(newest.get(version, False) for version in versions):
        return {
            "newest": _simple("predictions", model_version and sql_text(model_version)),
            "newest_quarantine": _simple("quarantine", model_version and sql_text(model_version)),
        }
    sources = TableSources("predictions", "quarantine", "books")
    return {
        view: newest_query(sources, is_migrated=migrated, model_version=model_version, in_quarantine=in_quarantine)
        for view, in_quarantine in (("newest", False), ("newest_quarantine", True))
    }


@contextmanager
def explained_scan(store: ObjectStore, table: str) -> Iterator[None]:
    """Turn an error of a dataset, which DuckDB repeats in its own error, into the store's error."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        # The words before an error of Arrow, and before one of Python.
        found = re.search(r"(?:registered as '\w+' failed|Python exception): (.+)", str(error), re.DOTALL)
        if found is None:
            raise
        text = " ".join(found[1].split())
        raise store.delta_failure(error) or PartUnreadable(
            f"A part of {store.uri(table_folder(table))} or its quarantine can't be read: {text}"
        ) from None


def _datasets(store: ObjectStore, table: str, batches: Collection[BatchBooks]) -> dict[str, Any]:
    """Open the rows of committed batches. The quarantine is committed first, so it can hold a batch that isn't."""
    committed = {books.batch for books in batches}
    found: dict[str, Any] = {}
    for name, folder in (("predictions", table_folder(table)), ("quarantine", quarantine_folder(table))):
        snapshot = open_delta(store, folder)
        if snapshot is not None:
            held = snapshot.part_names().keys()
            found[name] = snapshot.dataset(None if held <= committed else sorted(held & committed))
    numbers = pa.table(
        {
            "batch": pa.array([books.batch for books in batches], pa.string()),
            "number": pa.array([books.number for books in batches], pa.int32()),
            "model_version": pa.array([books.model_version for books in batches], pa.string()),
        }
    )
    return found | {"books": numbers}


def _rows_by_batch(snapshot: DeltaSnapshot | None) -> dict[str, int]:
    if snapshot is None:
        return {}
    actions = pa.table(snapshot.table.get_add_actions(flatten=True))
    if not len(actions) or "num_records" not in actions.column_names:
        return {}
    counts = actions.group_by(f"partition.{PARTITION}").aggregate([("num_records", "sum")])
    return dict(
        zip(
            counts.column(f"partition.{PARTITION}").to_pylist(),
            (count or 0 for count in counts.column("num_records_sum").to_pylist()),
            strict=True,
        )
    )


def _simple(source: str, version: str | None) -> str:
    return f"SELECT * FROM {source}" + ("" if version is None else f" WHERE model_version = {version}")  # noqa: S608


def _migrated(source: str, books: str, version: str | None) -> str:
    where = f"\n    WHERE books.model_version = {version}" if version else ""
    return _MIGRATED.format(source=source, books=books, image=_IMAGE, where=where)


def sql_text(value: str) -> str:
    """Quote a text for SQL."""
    return "'" + value.replace("'", "''") + "'"


_QUERY = """\
WITH predicted AS NOT MATERIALIZED (
    {predicted}
), quarantined AS NOT MATERIALIZED (
    {quarantined}
), versions AS (  -- the newest version of each file
    SELECT model_version, split_part(image, '#', 1) AS file, max(file_version) AS file_version
    FROM (
        SELECT model_version, image, file_version FROM predicted
        UNION ALL
        SELECT model_version, image, file_version FROM quarantined
    )
    GROUP BY ALL
)
SELECT {columns}
FROM {table} AS found
JOIN versions
    ON versions.model_version = found.model_version
    AND versions.file_version = found.file_version
    AND versions.file = split_part(found.image, '#', 1)
QUALIFY row_number() OVER (PARTITION BY found.model_version, found.image ORDER BY found.{order} DESC) = 1"""

_MIGRATED = """\
SELECT migrated.* REPLACE (
        CASE WHEN migrated.file_version IS NULL THEN {image} ELSE migrated.image END AS image,
        coalesce(migrated.model_version, books.model_version) AS model_version,
        coalesce(migrated.file_version, books.number) AS file_version
    ), books.number AS batch_number
    FROM {source} AS migrated JOIN {books} AS books USING (batch){where}"""
"""Rows of a table with batches from before Delta Lake, which have no file version."""

_FRAGMENT = "'(?s)#(row=[0-9]+$|member=.*)'"


def _encoded(text: str) -> str:
    return f"replace(replace(replace({text}, '%', '%25'), '#', '%23'), '?', '%3F')"


_FILE = _encoded(f"regexp_replace(migrated.image, {_FRAGMENT}, '')")
_INSIDE = _encoded(f"substr(regexp_extract(migrated.image, {_FRAGMENT}), 2)")
_IMAGE = f"{_FILE} || CASE WHEN regexp_matches(migrated.image, {_FRAGMENT}) THEN '#' || {_INSIDE} ELSE '' END"
"""The canonical URI of an image from before Delta Lake, whose URI was not percent-encoded."""
