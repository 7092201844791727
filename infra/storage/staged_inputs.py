"""Listed files on this machine's disk, so that any number of them can be compared with what was done in flat memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage.batch_plan import CHUNK_ROWS

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

RANGE_FILES = 5_000_000
"""Compared at a time: DuckDB sorts and joins 10,000,000 files within its memory, and 100,000,000 no more."""


class StagedInputs:
    """Files as they were listed: unordered, and some more than once where inputs overlap."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed = folder / "listed.parquet"
        self._files = 0
        self._samples: list[str] = []
        """A URI of each batch: enough to tell where ranges of about as many files begin."""

    def stage(self, files: Iterable[pa.RecordBatch]) -> None:
        """Keep files, by `FILE_SCHEMA`."""
        self._files, self._samples = 0, []
        with pq.ParquetWriter(self._listed, FILE_SCHEMA, compression="lz4") as writer:
            for batch in files:
                writer.write_batch(batch)
                if len(batch):
                    self._files += len(batch)
                    self._samples.append(batch.column("uri")[0].as_py())

    def new_files(self, done: list[Path]) -> Iterator[pa.RecordBatch]:
        """The files that are in no plan yet in this version of theirs, each once, in the order of their URIs.

        Args:
            done: the plans.
        """
        ordered = self._folder / "ordered.parquet"
        without = "ANTI JOIN done USING (uri, fingerprint)" if done else ""
        last = None
        for first_uri, end_uri in self._ranges():
            self._query(
                f"COPY (SELECT listed.* FROM listed {without} ORDER BY uri, label NULLS LAST) TO {_quoted(ordered)} "  # noqa: S608 (our own paths)
                f"(FORMAT parquet, COMPRESSION lz4_raw, ROW_GROUP_SIZE {CHUNK_ROWS})",
                done,
                first_uri,
                end_uri,
            )
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
        return sum(int(self._query(query, done, first, end)[0]) for first, end in self._ranges())

    def _ranges(self) -> Iterator[tuple[str, str | None]]:
        """First URIs and ends of ranges, in order, that hold all URIs and not many more than `RANGE_FILES` files each.

        Of files and plans, each range reads all URIs again: DuckDB's statistics of row groups end before URIs differ.
        """
        samples = sorted(self._samples)
        count = max(1, -(-self._files // RANGE_FILES))
        bounds = sorted({samples[len(samples) * number // count] for number in range(1, count)} if samples else ())
        yield from zip(["", *bounds], [*bounds, None], strict=True)

    def _query(self, sql: str, done: list[Path], first_uri: str, end_uri: str | None) -> Any:
        import duckdb

        with duckdb.connect(
            config={"memory_limit": _MEMORY, "temp_directory": str(self._folder), "threads": 2}
        ) as duck:
            duck.execute("SET preserve_insertion_order = false")
            files = {"listed": [self._listed]} | ({"done": done} if done else {})
            for name, paths in files.items():
                found = duck.read_parquet([str(path) for path in paths], hive_partitioning=False)
                _between(found, first_uri, end_uri).create_view(name)
            return duck.execute(sql).fetchone()


def _between(rows: Any, first_uri: str, end_uri: str | None) -> Any:
    """Rows with URIs in a range."""
    if first_uri:
        rows = rows.filter(f"uri >= {_literal(first_uri)}")
    return rows if end_uri is None else rows.filter(f"uri < {_literal(end_uri)}")


def _literal(text: str) -> str:
    return f"decode(from_hex('{text.encode().hex()}'))"  # whatever characters are in it


def _quoted(path: Path) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"
