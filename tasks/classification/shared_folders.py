"""Refuse local inputs that the workers of a cluster can't read."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.cluster.machines import works_elsewhere
from infra.errors import RequestError
from infra.settings import Settings
from infra.storage.keys import plan_key
from infra.storage.object_store import ObjectStore
from infra.storage.tables.planning.plan import CHUNK_ROWS, PLAN_SCHEMA, BatchPlan
from infra.storage.uris import local_path, percent_encode, real_folder
from tasks.classification.listed_file import UNUSABLE

_ADVICE = "If all machines mount the folder at the same path, set FMNIST_SHARED_FOLDERS"


def readable_folders(settings: Settings) -> list[str] | None:
    """Return the folders whose files all workers can read, or None if these are all folders.

    If workers can run on other machines, these are the folders declared as shared. A store in a folder is shared, too,
    because no worker could use it otherwise.
    """
    if not works_elsewhere():
        return None
    store = [settings.store.removeprefix("file://")] if settings.store.startswith("file://") else []
    return [real_folder(str(folder)) for folder in (*settings.shared_folders, *store)]


def check_readable(files: Iterable[pa.RecordBatch], folders: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield batches of listed files, unless one holds a local file outside of the readable folders.

    Args:
        files: batches with columns `uri` and `kind`.
        folders: see `readable_folders`.

    Raises:
        RequestError: a file is local and not in one of the folders.
    """
    for batch in files:
        if folders is not None and (uri := _first_unreadable(batch, folders)):
            raise RequestError(
                f"{uri} is on this machine, and workers on the Ray cluster's other machines can't read it. Put the "
                f"inputs on S3. {_ADVICE}={Path(local_path(uri)).parent}"
            )
        yield batch


def check_plan(store: ObjectStore, plan: BatchPlan, folders: Sequence[str] | None) -> None:
    """Check that an unfinished batch, which may be from a run without this cluster, holds only readable files.

    Args:
        store: store of the table.
        plan: plan of the batch.
        folders: see `readable_folders`.

    Raises:
        RequestError: a file of the batch is local and not in one of the folders.
    """
    if folders is None:
        return
    filesystem, path = store.arrow(plan_key(plan.table, plan.batch))
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        groups = _groups_with_local_files(file.metadata)
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=["uri", "kind"]):
            if uri := _first_unreadable(batch, folders):
                raise RequestError(
                    f"Batch {plan.batch} of table {plan.table} isn't finished, and {uri} in it is on one machine. "
                    "Workers on the Ray cluster's other machines can't read it. Unset FMNIST_RAY_ADDRESS and run "
                    f"`fmnist classify` again there. {_ADVICE}={Path(local_path(uri)).parent}"
                )


def _groups_with_local_files(metadata: pq.FileMetaData) -> list[int]:
    column = PLAN_SCHEMA.get_field_index("uri")
    found = {number: metadata.row_group(number).column(column).statistics for number in range(metadata.num_row_groups)}
    return [
        number
        for number, statistics in found.items()
        if statistics is None
        or not statistics.has_min_max
        or (statistics.min <= "file:~" and statistics.max >= "file:")
    ]


def _first_unreadable(files: pa.RecordBatch, folders: Sequence[str]) -> str | None:
    uris = files.column("uri")
    unreadable = pc.and_not(pc.starts_with(uris, "file://"), pc.equal(files.column("kind"), UNUSABLE))
    for folder in folders:
        inside = pc.starts_with(uris, f"file://{percent_encode(folder.rstrip('/'))}/")
        unreadable = pc.and_not(unreadable, inside)
    position = pc.index(unreadable, True).as_py()
    return None if position < 0 else uris[position].as_py()
