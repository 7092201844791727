"""Listed files on this machine's disk, so that any number of them can be compared with what was done in flat memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.batch_plan import CHUNK_ROWS

FILE_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.int8()),
    ]
)
"""A listed file a row; the label is known where a list of images tells it."""

_MEMORY = "160MB"
"""That DuckDB takes before it goes on on disk."""


class StagedInputs:
    """Files as they were listed: unordered, and some more than once where inputs overlap."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed = folder / "listed.parquet"

    def stage(self, files: Iterable[pa.RecordBatch]) -> None:
        """Keep files, by `FILE_SCHEMA`."""
        with pq.ParquetWriter(self._listed, FILE_SCHEMA, compression="lz4") as writer:
            for batch in files:
                writer.write_batch(batch)

    def new_files(self, done: list[Path]) -> Iterator[pa.RecordBatch]:
        """The files that are in no plan yet in this version of theirs, each once, in the order of their URIs.

        Args:
            done: the plans.
        """
        ordered = self._folder / "ordered.parquet"
        without = "ANTI JOIN done USING (uri, fingerprint)" if done else ""
        self._query(
            f"COPY (SELECT listed.* FROM listed {without} ORDER BY uri, label NULLS LAST) TO {_quoted(ordered)} "  # noqa: S608 (our own paths)
            f"(FORMAT parquet, COMPRESSION lz4_raw, ROW_GROUP_SIZE {CHUNK_ROWS})",
            done,
        )
        last = None
        with pq.ParquetFile(ordered) as file:
            for batch in file.iter_batches(CHUNK_ROWS):
                uris = batch.column("uri")
                first = np.ones(len(uris), bool)
                first[1:] = np.asarray(pc.not_equal(uris[1:], uris[:-1]))
                first[0] = uris[0].as_py() != last
                last = uris[-1].as_py()
                yield batch.filter(pa.array(first)).cast(FILE_SCHEMA)
        ordered.unlink()

    def images_done(self, done: list[Path]) -> int:
        """Images of the staged files that plans hold."""
        if not done:
            return 0
        query = "SELECT coalesce(sum(rows), 0)::BIGINT FROM done SEMI JOIN listed USING (uri, fingerprint)"
        return int(self._query(query, done)[0])

    def _query(self, sql: str, done: list[Path]) -> Any:
        import duckdb

        with duckdb.connect(
            config={"memory_limit": _MEMORY, "temp_directory": str(self._folder), "threads": 2}
        ) as duck:
            duck.execute("SET preserve_insertion_order = false")
            if done:
                duck.read_parquet([str(path) for path in done], hive_partitioning=False).create_view("done")
            duck.execute(f"CREATE VIEW listed AS FROM read_parquet({_quoted(self._listed)}, hive_partitioning = false)")
            return duck.execute(sql).fetchone()


def _quoted(path: Path) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"
