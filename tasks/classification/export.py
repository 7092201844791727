"""Write the newest predictions of a table to one file, for people without a query engine."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from fmnist_model.classes import CLASS_NAMES
from infra.errors import JobError, RequestError
from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.newest import newest_rows, sql_text

_FORMATS = {".parquet": "FORMAT parquet, COMPRESSION zstd", ".csv": "FORMAT csv, HEADER"}
_CSV_COLUMNS = ", ".join(
    [
        "* EXCLUDE (probabilities)",
        *(f"probabilities[{number + 1}] AS probability_{number}" for number in range(len(CLASS_NAMES))),
    ]
)


def check_target(file: Path) -> None:
    """Check that a file can be written, before any rows are read.

    Raises:
        RequestError: the ending is unknown, or the folder is missing or read-only.
    """
    if file.suffix.lower() not in _FORMATS:
        raise RequestError(f"--to: {file} must end with .parquet or .csv, which chooses the format.")
    if file.is_dir():
        raise RequestError(f"--to: {file} is a folder. Name a file.")
    if not file.parent.is_dir():
        raise RequestError(f"--to: the folder {file.parent} doesn't exist. Create it first.")
    if not os.access(file.parent, os.W_OK):
        raise RequestError(f"--to: the folder {file.parent} is read-only.")


def export_newest(
    store: ObjectStore, table: str, batches: Sequence[BatchBooks], file: Path, model_version: str | None
) -> int:
    """Write the newest predictions to a file, which is complete or doesn't change. Return the number of rows.

    Args:
        store: store of the table.
        table: name of the prediction table.
        batches: the books of its committed batches.
        file: file to write, ending with `.parquet` or `.csv`.
        model_version: the version whose predictions to write, or None for all.

    Raises:
        RequestError: the file can't be written, or the table has no batch of the version.
        StoreUnavailable, StoreMisconfigured: the store fails.
    """
    check_target(file)
    versions = list(dict.fromkeys(books.model_version for books in batches))
    if model_version is not None and model_version not in versions:
        raise RequestError(
            f"--model: table {table} has no batch of model version {model_version!r}. Versions: {', '.join(versions)}."
        )
    suffix = file.suffix.lower()
    columns = _CSV_COLUMNS if suffix == ".csv" else "*"
    with _replaced(file) as written, newest_rows(store, table, batches, model_version) as connection:
        copy = f"COPY (SELECT {columns} FROM newest) TO {sql_text(str(written))} ({_FORMATS[suffix]})"  # noqa: S608
        row: Any = connection.execute(copy).fetchone()
    return int(row[0])


@contextmanager
def _replaced(file: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `file` when the block ends, or is removed if it raises."""
    import duckdb

    written = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield written
        with written.open("rb") as stream:
            os.fsync(stream.fileno())
        written.replace(file)
    except duckdb.IOException as error:
        raise JobError(f"{file} can't be written: {error}") from None
    finally:
        written.unlink(missing_ok=True)
