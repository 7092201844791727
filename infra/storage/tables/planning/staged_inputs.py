"""Listed files on the local disk, to find those that no batch holds yet. Memory doesn't grow with their number."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage.input_files import NOT_THERE
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


def literal(text: str) -> str:
    """Quote a string for SQL."""
    return "'" + text.replace("'", "''") + "'"


WITH_LABELS = "+"
"""Separates the fingerprint of a file from that of its label file."""


@dataclass(frozen=True)
class PlannedFiles:
    """The files that the batches of one model hold."""

    model_version: str
    segments: Sequence[Path] = ()
    """Segments of the index (`infra.storage.tables.planning.index`), which also have rows of other models."""
    unfinished: Sequence[int] = ()
    """Numbers of the batches that are not committed."""
    plans: Mapping[int, Path] = field(default_factory=dict)
    """Plans of the batches that no segment covers, by their numbers."""
    quarantined: Path | None = None
    """Which of these files have images in quarantine (`write_quarantined_files`)."""

    @property
    def views(self) -> dict[str, Sequence[Path]]:
        """Files by the name of the view that `sql` needs. Empty if no batch holds a file."""
        views: dict[str, Sequence[Path]] = {f"plan_{number}": [path] for number, path in self.plans.items()}
        return {"segments": self.segments, **views} if self.segments else views

    @property
    def sql(self) -> str:
        """Query for URI, fingerprint, images, and number of the batch. A file can have several rows."""
        queries = [
            f"SELECT uri, fingerprint, rows AS images, {number} AS number FROM plan_{number}"  # noqa: S608 (numbers)
            for number in self.plans
        ]
        if self.segments:
            of_model = f"WHERE model_version = {literal(self.model_version)}"
            queries.append(f"SELECT uri, fingerprint, images, number FROM segments {of_model}")  # noqa: S608 (quoted)
        return " UNION ALL ".join(queries)


@dataclass(frozen=True)
class DoneImages:
    """Images of the staged files that committed batches hold, in the newest version of their files."""

    images: int = 0
    """Predicted and quarantined images."""
    quarantined: int = 0
    """Those in quarantine."""
    retryable: int = 0
    """Those in quarantine for a reason of their place, such as a missing file."""

    def __add__(self, other: "DoneImages") -> "DoneImages":
        return DoneImages(
            self.images + other.images, self.quarantined + other.quarantined, self.retryable + other.retryable
        )


@dataclass(frozen=True)
class Comparison:
    """Staged files, compared with those that batches hold."""

    _new: list[Path]
    """Local files with the new files of each range, in order."""
    _retries: list[Path]
    """Local files with the files to try again of each range, in order, and whether to look at each one first."""
    superseded: int
    """Number of new files of which a batch holds another version."""
    done: DoneImages
    """Images of the staged files that committed batches hold."""

    def new_files(self) -> Iterator[pa.RecordBatch]:
        """Return each file once whose current version no batch holds, in the order of the URIs. Call it once.

        Files that `retries` returns are not among them.
        """
        for batch in _once_each(self._new):
            yield batch.cast(FILE_SCHEMA)

    def retries(self, may_be_read: Callable[[pa.RecordBatch], pa.Array]) -> Iterator[pa.RecordBatch]:
        """Return each file to try again once, in the order of the URIs. Call it once.

        Args:
            may_be_read: looks at files, rows of `FILE_SCHEMA`, and returns for each whether it can be read now. It is
                called for files that haven't changed.
        """
        for batch in _once_each(self._retries):
            files, look = batch.select(FILE_SCHEMA.names).cast(FILE_SCHEMA), batch.column("look")
            yield files.filter(pc.invert(look))
            candidates = files.filter(look)
            if len(candidates):
                yield candidates.filter(may_be_read(candidates))


def _once_each(paths: list[Path]) -> Iterator[pa.RecordBatch]:
    """Read files in the order of their URIs, drop repeated URIs, and delete the local files."""
    last = None
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK_ROWS):
                uris = batch.column("uri")
                first = np.ones(len(uris), bool)
                first[1:] = np.asarray(pc.not_equal(uris[1:], uris[:-1]))
                first[0] = uris[0].as_py() != last
                last = uris[-1].as_py()
                yield batch.filter(pa.array(first))
        path.unlink()


_SAME = (
    f"(held.fingerprint = listed.fingerprint OR (held.is_newest AND listed.fingerprint = {literal(NOT_THERE)}) "
    f"OR (NOT contains(held.fingerprint, {literal(WITH_LABELS)}) "
    f"AND starts_with(listed.fingerprint, held.fingerprint || {literal(WITH_LABELS)})))"
)
"""Whether a batch holds the listed version of a file. Plans from before Delta Lake lack the label file's part."""


@dataclass(frozen=True)
class _RangeFiles:
    """Local files of a range."""

    new: Path
    retries: Path


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

    def compare(self, planned: PlannedFiles, *, retry_all: bool = False) -> Comparison:
        """Compare the staged files with those that batches of the same model hold.

        A file is new if no batch holds its fingerprint. A file that doesn't exist any more is not new if a batch holds
        any version of it.

        A new version of a file is a retry if images of the newest version that batches hold are in quarantine for a
        reason of their place. So is a file that hasn't changed and has such images, if it can be read now.

        Args:
            planned: the files that batches hold.
            retry_all: try all files again that have images in quarantine, whatever the reason.
        """
        new, retries, superseded, done = [], [], 0, DoneImages()
        for number, (first_uri, end_uri) in enumerate(self._ranges()):
            names = _RangeFiles(*(self._folder / f"{name}-{number}.parquet" for name in ("new", "retries")))
            counts = self._compare_range(planned, names, _between(first_uri, end_uri), retry_all=retry_all)
            new.append(names.new)
            retries.append(names.retries)
            superseded += counts[0]
            done += counts[1]
        return Comparison(new, [path for path in retries if path.exists()], superseded, done)

    def _compare_range(
        self, planned: PlannedFiles, files: "_RangeFiles", condition: str, *, retry_all: bool
    ) -> tuple[int, DoneImages]:
        """Write the new files and the retries of a range. Return the number of superseded files and the images done."""
        listed = f"(SELECT * FROM listed WHERE {condition})"  # noqa: S608 (URIs are encoded)
        views: dict[str, Sequence[Path]] = {"listed": [self._listed]}
        if not planned.views:
            self._copy(f"SELECT * FROM {listed} ORDER BY uri, label NULLS LAST", views, files.new)  # noqa: S608
            return 0, DoneImages()
        held = self._write_held(planned, listed)
        views |= {"held": [held]}
        wanted = "quarantined" if retry_all else "retryable"
        compared = (
            f"SELECT listed.*, coalesce(newest.{wanted}, 0) > 0 AND newest.committed AS retry, "  # noqa: S608
            "held.number IS NOT NULL AS same, held.number = newest.number AS same_is_newest, "
            f"held.committed, held.images, held.quarantined, held.retryable FROM {listed} AS listed "
            "LEFT JOIN (SELECT * FROM held WHERE is_newest) AS newest USING (uri) "
            f"LEFT JOIN held ON held.uri = listed.uri AND {_SAME}"
        )
        columns = ", ".join(FILE_SCHEMA.names)
        self._copy(
            f"SELECT {columns} FROM ({compared}) WHERE NOT same AND retry IS NOT TRUE ORDER BY uri, label NULLS LAST",  # noqa: S608
            views,
            files.new,
        )
        if planned.quarantined:
            look = f"fingerprint = {literal(NOT_THERE)}" if retry_all else "same"
            self._copy(
                f"SELECT {columns}, {look} AS look FROM ({compared}) "  # noqa: S608 (our own names)
                "WHERE retry AND (NOT same OR same_is_newest) ORDER BY uri, label NULLS LAST",
                views,
                files.retries,
            )
        new = {"new": [files.new], "held": [held]}
        superseded = query("SELECT count(DISTINCT uri) FROM new SEMI JOIN held USING (uri)", new, self._folder)
        done = query(
            "SELECT coalesce(sum(images), 0)::BIGINT, coalesce(sum(quarantined), 0)::BIGINT, "  # noqa: S608
            "coalesce(sum(retryable), 0)::BIGINT FROM (SELECT uri, max(images) AS images, "
            "max(quarantined) AS quarantined, max(retryable) AS retryable "
            f"FROM ({compared}) WHERE same AND committed GROUP BY uri)",
            views,
            self._folder,
        )
        held.unlink()
        return superseded[0], DoneImages(*done)

    def _write_held(self, planned: PlannedFiles, listed: str) -> Path:
        """Write the versions of the listed files that batches hold, with their images in quarantine."""
        known, held = self._folder / "known.parquet", self._folder / "held.parquet"
        views: dict[str, Sequence[Path]] = {"listed": [self._listed]} | planned.views
        self._copy(f"SELECT * FROM ({planned.sql}) SEMI JOIN {listed} AS listed USING (uri)", views, known)  # noqa: S608
        views = {"known": [known]}
        in_quarantine = "(SELECT NULL::VARCHAR AS uri, NULL AS file_version, NULL AS images, NULL AS retryable)"
        if planned.quarantined:
            in_quarantine = "in_quarantine"
            views["in_quarantine"] = [planned.quarantined]
        unfinished = ", ".join(map(str, planned.unfinished)) or "NULL"
        self._copy(
            "WITH newest AS (SELECT uri, fingerprint, max(number) AS number FROM known GROUP BY ALL), "  # noqa: S608
            "held AS (SELECT uri, fingerprint, number, sum(images)::BIGINT AS images "
            "FROM known JOIN newest USING (uri, fingerprint, number) GROUP BY ALL), "
            "last AS (SELECT uri, max(number) AS number FROM known GROUP BY uri) "
            f"SELECT held.*, (held.number IN ({unfinished})) IS NOT TRUE AS committed, "
            "held.number = last.number AS is_newest, "
            "q.images::BIGINT AS quarantined, q.retryable::BIGINT AS retryable "
            f"FROM held JOIN last USING (uri) LEFT JOIN {in_quarantine} AS q "
            "ON q.uri = held.uri AND q.file_version = held.number",
            views,
            held,
        )
        known.unlink()
        return held

    def _copy(self, sql: str, views: Mapping[str, Sequence[Path]], path: Path) -> None:
        """Write the result of a query to a local file."""
        target = f"{literal(str(path))} (FORMAT parquet, COMPRESSION lz4_raw, ROW_GROUP_SIZE {CHUNK_ROWS})"
        query(f"COPY ({sql}) TO {target}", views, self._folder)

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


def _between(first_uri: str, end_uri: str | None) -> str:
    """Return the condition for the URIs of a range."""
    condition = f"uri >= {_decoded(first_uri)}"
    return condition if end_uri is None else f"{condition} AND uri < {_decoded(end_uri)}"


def _decoded(text: str) -> str:
    return f"decode(from_hex('{text.encode().hex()}'))"  # works for any characters
