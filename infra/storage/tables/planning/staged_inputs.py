"""Listed files on the local disk, to find those that no batch holds yet. Memory doesn't grow with their number."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage.tables.planning.plan import CHUNK_ROWS

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


@dataclass(frozen=True)
class PlannedFiles:
    """The files that the batches of one model hold."""

    model_version: str
    segments: Sequence[Path] = ()
    """Segments of the index (`infra.storage.tables.planning.index`), which also have rows of other models."""
    unfinished: Sequence[int] = ()
    """Numbers of the batches in the segments that are not committed."""
    committed_plans: Sequence[Path] = ()
    """Plans of committed batches that no segment covers."""
    unfinished_plans: Sequence[Path] = ()
    """Plans of batches in progress that no segment covers."""

    @property
    def views(self) -> dict[str, Sequence[Path]]:
        """Files by the name of the view that `sql` needs. Empty if no batch holds a file."""
        views = {
            "segments": self.segments,
            "committed_plans": self.committed_plans,
            "unfinished_plans": self.unfinished_plans,
        }
        return {name: paths for name, paths in views.items() if paths}

    @property
    def sql(self) -> str:
        """Query for URI, fingerprint, images, and whether the batch is committed. A file can have several rows."""
        numbers = ", ".join(map(str, self.unfinished)) or "NULL"
        queries = {
            "segments": f"SELECT uri, fingerprint, images, (number IN ({numbers})) IS NOT TRUE AS committed "  # noqa: S608 (numbers)
            f"FROM segments WHERE model_version = {literal(self.model_version)}",
            "committed_plans": "SELECT uri, fingerprint, rows AS images, true AS committed FROM committed_plans",
            "unfinished_plans": "SELECT uri, fingerprint, rows AS images, false AS committed FROM unfinished_plans",
        }
        return " UNION ALL ".join(queries[name] for name in self.views)


@dataclass(frozen=True)
class Comparison:
    """Staged files, compared with those that batches hold."""

    _ordered: list[Path]
    """Local files with the new files of each range, in order."""
    superseded: int
    """Number of new files of which a batch holds another version."""
    images_done: int
    """Number of images of the staged files that committed batches hold."""

    def new_files(self) -> Iterator[pa.RecordBatch]:
        """Return each file once whose current version no batch holds, in the order of the URIs. Call it once."""
        last = None
        for path in self._ordered:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(CHUNK_ROWS):
                    uris = batch.column("uri")
                    first = np.ones(len(uris), bool)
                    first[1:] = np.asarray(pc.not_equal(uris[1:], uris[:-1]))
                    first[0] = uris[0].as_py() != last
                    last = uris[-1].as_py()
                    yield batch.filter(pa.array(first)).cast(FILE_SCHEMA)
            path.unlink()


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

    def compare(self, planned: PlannedFiles) -> Comparison:
        """Compare the staged files with those that batches of the same model hold.

        Reads the index once per range, and its matches with the listing from the disk after that.
        """
        ordered, superseded, images_done = [], 0, 0
        for number, (first_uri, end_uri) in enumerate(self._ranges()):
            new = self._folder / f"new-{number}.parquet"
            counts = self._compare_range(planned, new, first_uri, end_uri)
            ordered.append(new)
            superseded += counts[0]
            images_done += counts[1]
        return Comparison(ordered, superseded, images_done)

    def _compare_range(self, planned: PlannedFiles, new: Path, first_uri: str, end_uri: str | None) -> tuple[int, int]:
        """Write the new files of a range. Return the numbers of superseded files and of images done."""
        known = self._folder / "known.parquet"
        listed = f"(SELECT * FROM listed WHERE {_between(first_uri, end_uri)}) AS listed"  # noqa: S608 (URIs are encoded)
        views = {"listed": [self._listed]} | planned.views
        sort = f"TO {literal(str(new))} (FORMAT parquet, COMPRESSION lz4_raw, ROW_GROUP_SIZE {CHUNK_ROWS})"
        if not planned.views:
            query(f"COPY (SELECT * FROM {listed} ORDER BY uri, label NULLS LAST) {sort}", views, self._folder)  # noqa: S608 (our own paths)
            return 0, 0
        # Everything that batches hold of the listed files, of any version.
        query(
            f"COPY (SELECT * FROM ({planned.sql}) AS held SEMI JOIN {listed} USING (uri)) TO {literal(str(known))} "  # noqa: S608
            "(FORMAT parquet, COMPRESSION lz4_raw)",
            views,
            self._folder,
        )
        views = {"listed": [self._listed], "known": [known]}
        query(
            f"COPY (SELECT listed.* FROM {listed} ANTI JOIN known USING (uri, fingerprint) "  # noqa: S608
            f"ORDER BY uri, label NULLS LAST) {sort}",
            views,
            self._folder,
        )
        superseded = query(
            "SELECT count(DISTINCT uri) FROM new SEMI JOIN known USING (uri)",
            {"new": [new], "known": [known]},
            self._folder,
        )[0]
        done = query(
            f"SELECT coalesce(sum(images), 0)::BIGINT FROM known SEMI JOIN {listed} USING (uri, fingerprint) "  # noqa: S608
            "WHERE committed",
            views,
            self._folder,
        )[0]
        known.unlink()
        return superseded, done

    def _ranges(self) -> Iterator[tuple[str, str | None]]:
        """Return the first URI and the end of each range, in order, with about `RANGE_FILES` files per range.

        Each range reads all URIs of files and plans again, because the prefixes in DuckDB's row group statistics are
        too short to tell URIs apart.
        """
        samples = sorted(self._samples)
        count = max(1, -(-self._files // RANGE_FILES))
        bounds = sorted({samples[len(samples) * number // count] for number in range(1, count)} if samples else ())
        yield from zip(["", *bounds], [*bounds, None], strict=True)


def query(sql: str, views: Mapping[str, Sequence[Path]], scratch: Path) -> Any:
    """Run SQL over Parquet files with bounded memory, and return the first row of the result.

    Args:
        sql: statement for DuckDB.
        views: local files by the name of the view.
        scratch: folder for what doesn't fit into memory.
    """
    import duckdb

    with duckdb.connect(config={"memory_limit": _MEMORY, "temp_directory": str(scratch), "threads": 2}) as duck:
        duck.execute("SET preserve_insertion_order = false")
        for name, paths in views.items():
            duck.read_parquet([str(path) for path in paths], hive_partitioning=False).create_view(name)
        return duck.execute(sql).fetchone()


def literal(text: str) -> str:
    """Quote a string for SQL."""
    return "'" + text.replace("'", "''") + "'"


def _between(first_uri: str, end_uri: str | None) -> str:
    """Return the condition for the URIs of a range."""
    condition = f"uri >= {_decoded(first_uri)}"
    return condition if end_uri is None else f"{condition} AND uri < {_decoded(end_uri)}"


def _decoded(text: str) -> str:
    return f"decode(from_hex('{text.encode().hex()}'))"  # works for any characters
