"""Listed files on the local disk, to find those that no plan holds yet. Memory doesn't grow with their number."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage.tables.plan import CHUNK_ROWS

FILE_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.int16()),
    ]
)
"""One listed file per row. `label` is the class from a list of images, if it has one."""

_MEMORY = "160MB"
"""Memory that DuckDB uses before it spills to disk."""

RANGE_FILES = 5_000_000
"""Files compared at a time. DuckDB can sort and join 10,000,000 files within its memory, but not 100,000,000."""


class StagedInputs:
    """Files in the order of their listing. Overlapping inputs list a file more than once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed = folder / "listed.parquet"
        self._files = 0
        self._samples: list[str] = []
        """One URI of each batch, enough to find bounds of ranges with similar numbers of files."""

    def stage(self, files: Iterable[pa.RecordBatch]) -> None:
        """Write listed files, rows of `FILE_SCHEMA`, to the disk."""
        self._files, self._samples = 0, []
        with pq.ParquetWriter(self._listed, FILE_SCHEMA, compression="lz4") as writer:
            for batch in files:
                writer.write_batch(batch)
                if len(batch):
                    self._files += len(batch)
                    self._samples.append(batch.column("uri")[0].as_py())

    def new_files(self, done: list[Path]) -> Iterator[pa.RecordBatch]:
        """Return each file once if no plan holds its current version, in the order of the URIs.

        Args:
            done: local files of the plans.
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
        """Count the images of the staged files that plans hold."""
        if not done:
            return 0
        query = "SELECT coalesce(sum(rows), 0)::BIGINT FROM done SEMI JOIN listed USING (uri, fingerprint)"
        return sum(int(self._query(query, done, first, end)[0]) for first, end in self._ranges())

    def superseded(self, done: list[Path]) -> int:
        """Count the staged files of which plans hold another version, and not this one."""
        if not done:
            return 0
        query = (
            "SELECT count(DISTINCT uri) FROM listed SEMI JOIN done USING (uri) ANTI JOIN done AS same "
            "ON listed.uri = same.uri AND listed.fingerprint = same.fingerprint"
        )
        return sum(int(self._query(query, done, first, end)[0]) for first, end in self._ranges())

    def _ranges(self) -> Iterator[tuple[str, str | None]]:
        """Return the first URI and the end of each range, in order, with about `RANGE_FILES` files per range.

        Each range reads all URIs of files and plans again, because the prefixes in DuckDB's row group statistics are
        too short to tell URIs apart.
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
    """Select the rows whose URIs are in a range."""
    if first_uri:
        rows = rows.filter(f"uri >= {_literal(first_uri)}")
    return rows if end_uri is None else rows.filter(f"uri < {_literal(end_uri)}")


def _literal(text: str) -> str:
    return f"decode(from_hex('{text.encode().hex()}'))"  # works for any characters


def _quoted(path: Path) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"
