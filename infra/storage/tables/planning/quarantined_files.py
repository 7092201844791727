"""The files of which images are in quarantine, so that a planner knows which ones to try again.

quarantine/<table>/    read as a stream, with bounded memory
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.storage.keys import quarantine_folder
from infra.storage.object_store import ObjectStore, explained_delta
from infra.storage.tables.books import read_books
from infra.storage.tables.delta import open_delta
from infra.storage.tables.newest import NUMBERED_ID, explained_scan, migrated_query, sql_text

_MEMORY = "160MB"
"""Memory that DuckDB uses before it spills to disk."""


def write_quarantined_files(store: ObjectStore, table: str, model_version: str, scratch: Path) -> Path | None:
    """Write the files of which a model version has images in quarantine to a local Parquet file.

    The columns are `uri`, `file_version`, `images` (in quarantine), and `retryable` (of these, the number whose reason
    lies with the file's place). A file has one row per version.

    Args:
        store: store of the table.
        table: name of the prediction table.
        model_version: model version whose images to count.
        scratch: folder for the file, and for what doesn't fit into memory.

    Raises:
        PartUnreadable: a part of the quarantine is damaged.
        StoreUnavailable, StoreMisconfigured: the store fails.

    Returns:
        The local file, or None if the table has no quarantined images.
    """
    import duckdb

    snapshot = open_delta(store, quarantine_folder(table))
    batches = snapshot.part_names() if snapshot else {}
    if snapshot is None or not batches:
        return None
    path = scratch / "quarantined.parquet"
    with (
        explained_delta(store),
        explained_scan(store, table),
        duckdb.connect(config={"memory_limit": _MEMORY, "temp_directory": str(scratch), "threads": 2}) as connection,
    ):
        connection.register("quarantine", snapshot.dataset())
        rows = f"SELECT * FROM quarantine WHERE model_version = {sql_text(model_version)}"  # noqa: S608 (quoted)
        if not all(NUMBERED_ID.fullmatch(batch) for batch in batches):
            connection.register("books", _numbers(store, table))
            rows = migrated_query("quarantine", "books", sql_text(model_version))
        connection.execute(
            "COPY (SELECT split_part(image, '#', 1) AS uri, file_version, count(*) AS images, "  # noqa: S608 (our own names)
            f"count(*) FILTER (retryable) AS retryable FROM ({rows}) GROUP BY ALL) TO {sql_text(str(path))} "
            "(FORMAT parquet, COMPRESSION lz4_raw)"
        )
    return path


def _numbers(store: ObjectStore, table: str) -> Any:
    """Return the number and the model of each batch. Rows from before Delta Lake have neither."""
    found = read_books(store, table)
    return pa.table(
        {
            "batch": pa.array([books.batch for books in found], pa.string()),
            "number": pa.array([books.number for books in found], pa.int32()),
            "model_version": pa.array([books.model_version for books in found], pa.string()),
        }
    )
