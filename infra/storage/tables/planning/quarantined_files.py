"""The files of which images are in quarantine, so that a planner knows which ones to try again.

quarantine/<table>/    read as a stream, with bounded memory
"""

from collections.abc import Collection
from pathlib import Path

from infra.storage.keys import quarantine_folder
from infra.storage.object_store import ObjectStore, explained_delta
from infra.storage.tables.delta import DeltaSnapshot, open_delta
from infra.storage.tables.newest import explained_scan, sql_text

_MEMORY = "160MB"
"""Memory that DuckDB uses before it spills to disk."""


def write_quarantined_files(
    store: ObjectStore,
    table: str,
    model_version: str,
    scratch: Path,
    *,
    bounds: tuple[str, str],
    uncertain_kinds: Collection[str] = (),
) -> Path | None:
    """Write the files of which a model version has images in quarantine to a local Parquet file.

    The columns are `uri`, `number` (of the batch), and numbers of images: `images` (in quarantine), `retryable` (of
    these, those whose reason lies with the file's place), and `uncertain` (of these, those whose reason is of an
    uncertain kind). A file has one row per batch.

    Parts that can't hold the wanted files are not read.

    Args:
        store: store of the table.
        table: name of the prediction table.
        model_version: model version whose images to count.
        scratch: folder for the file, and for what doesn't fit into memory.
        bounds: first and last URI of the wanted files. Others may be written, too.
        uncertain_kinds: kinds of reasons that a look at the file can't rule out.

    Raises:
        ObjectNotFound, PartUnreadable: a part of the quarantine is missing or damaged.
        StoreUnavailable, StoreMisconfigured: the store fails.

    Returns:
        The local file, or None if no part can hold the wanted files.
    """
    import duckdb

    snapshot = open_delta(store, quarantine_folder(table))
    batches = _batches_between(snapshot, *bounds) if snapshot else []
    if snapshot is None or not batches:
        return None
    path = scratch / "quarantined.parquet"
    kinds = ", ".join(map(sql_text, sorted(uncertain_kinds))) or "NULL"
    with (
        explained_delta(store),
        explained_scan(store, table),
        duckdb.connect(config={"memory_limit": _MEMORY, "temp_directory": str(scratch), "threads": 2}) as connection,
    ):
        connection.register("quarantine", snapshot.dataset(batches))
        connection.execute(
            "COPY (SELECT split_part(image, '#', 1) AS uri, file_version AS number, count(*) AS images, "  # noqa: S608
            "count(*) FILTER (retryable) AS retryable, "
            f"count(*) FILTER (retryable AND reason_kind IN ({kinds})) AS uncertain "
            f"FROM quarantine WHERE model_version = {sql_text(model_version)} GROUP BY ALL) "
            f"TO {sql_text(str(path))} (FORMAT parquet, COMPRESSION lz4_raw)"
        )
    return path


def _batches_between(snapshot: DeltaSnapshot, first_uri: str, last_uri: str) -> list[str]:
    """Return the batches with parts that may hold images of files in a range of URIs."""
    end = f"{last_uri}$"  # comes after every image of the last file, which ends with `#row=` or `#member=`
    return sorted(
        {
            part.batch
            for part in snapshot.parts()
            if (part.last_image is None or part.last_image >= first_uri)
            and (part.first_image is None or part.first_image < end)
        }
    )
