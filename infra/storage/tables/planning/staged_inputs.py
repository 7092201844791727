"""Listed files on the local disk, to find those that no batch holds yet. Memory doesn't grow with their number."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
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

UNUSABLE = "unusable"
"""Kind of a list's entry that can't be read, as planning found out. Its fingerprint is the reason for quarantine."""


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

    def __sub__(self, other: "DoneImages") -> "DoneImages":
        return DoneImages(
            self.images - other.images, self.quarantined - other.quarantined, self.retryable - other.retryable
        )


_DONE = [entry.name for entry in fields(DoneImages)]


class Comparison:
    """Staged files, compared with those that batches hold."""

    def __init__(self, new: list[Path], retries: list[Path], superseded: int, done: DoneImages) -> None:
        """Take the results of all ranges.

        Args:
            new: local files with the new files of each range, in order.
            retries: local files with the files to try again of each range, in order.
            superseded: number of new files of which a batch holds another version.
            done: images of the staged files that committed batches hold.
        """
        self._new, self._retries, self._done = new, retries, done
        self.superseded = superseded
        """Number of new files of which a batch holds another version."""

    @property
    def done(self) -> DoneImages:
        """Images of the staged files that committed batches hold, without those that `retries` has returned."""
        return self._done

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
            for files in (
                batch.filter(pc.invert(batch.column("look"))),
                _readable(batch.filter(batch.column("look")), may_be_read),
            ):
                if len(files):
                    self._done -= DoneImages(*(pc.sum(files.column(name)).as_py() for name in _DONE))
                    yield files.select(FILE_SCHEMA.names).cast(FILE_SCHEMA)


def _readable(files: pa.RecordBatch, may_be_read: Callable[[pa.RecordBatch], pa.Array]) -> pa.RecordBatch:
    """Return the files that can be read now."""
    return files.filter(may_be_read(files.select(FILE_SCHEMA.names).cast(FILE_SCHEMA))) if len(files) else files


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


_IS_GONE = f"(listed.fingerprint = {literal(NOT_THERE)} OR listed.kind = {literal(UNUSABLE)})"
"""Whether a list names a file that doesn't exist any more, or can't be used now."""


def _is_listed_version(held: str) -> str:
    """Return the condition that a batch holds the listed version of a file.

    A file that is gone has no new version. Plans from before Delta Lake lack the label file's part of the fingerprint,
    so without it any label file will do.
    """
    plain = f"(NOT contains({held}.fingerprint, {literal(WITH_LABELS)}) AND starts_with(listed.fingerprint, "
    return (
        f"CASE WHEN {_IS_GONE} THEN {held}.is_newest ELSE {held}.fingerprint = listed.fingerprint "
        f"OR {plain}{held}.fingerprint || {literal(WITH_LABELS)})) END"
    )


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
        self.bounds: tuple[str, str] | None = None
        """The first and the last URI in their order. None without files."""

    def stage(self, files: Iterable[pa.RecordBatch]) -> None:
        """Write listed files, rows of `FILE_SCHEMA`, to the disk."""
        self._files, self._samples, self.bounds = 0, [], None
        with pq.ParquetWriter(self._listed, FILE_SCHEMA, compression="lz4") as writer:
            for batch in files:
                writer.write_batch(batch)
                if len(batch):
                    self._files += len(batch)
                    self._samples.append(batch.column("uri")[0].as_py())
                    found = pc.min_max(batch.column("uri")).as_py()
                    first, last = self.bounds or (found["min"], found["max"])
                    self.bounds = min(first, found["min"]), max(last, found["max"])

    def compare(self, planned: PlannedFiles, *, retry_all: bool = False) -> Comparison:
        """Compare the staged files with those that batches of the same model hold.

        A file is new if no batch holds its fingerprint. A file that doesn't exist any more is not new if a batch holds
        any version of it.

        A file is a retry if images of the newest version that committed batches hold are in quarantine, and

        - the version is new, and the reason lies with the file's place;
        - or a batch holds the version, but a later batch holds another one, as after a restored backup;
        - or the version is the same, the reason lies with its place, and the file can be read now. If a look can't
          rule the reason out, the version is tried again only once.

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
            self._copy(f"SELECT * FROM {listed} AS listed ORDER BY {_ORDER}", views, files.new)  # noqa: S608 (our own names)
            return 0, DoneImages()
        held = self._write_held(planned, listed)
        matched = self._write_matched(listed, held)
        views = {"matched": [matched], "held": [held]}
        columns = ", ".join(FILE_SCHEMA.names)
        self._copy(
            f"SELECT {columns} FROM matched AS listed ANTI JOIN ({_OF_THE_PLACE}) USING (uri) "  # noqa: S608
            f"WHERE number IS NULL ORDER BY {_ORDER}",
            views,
            files.new,
        )
        if planned.quarantined:
            found = self._folder / "found.parquet"
            self._copy(_retries(retry_all=retry_all), views, found)
            order = f"{_ORDER}, number DESC NULLS LAST"
            # Joining and sorting 5,000,000 files in one query takes more than DuckDB's memory.
            self._copy(f"SELECT * FROM found AS listed ORDER BY {order}", {"found": [found]}, files.retries)  # noqa: S608
            found.unlink()
        new = {"new": [files.new], "held": [held]}
        superseded = query("SELECT count(DISTINCT uri) FROM new SEMI JOIN held USING (uri)", new, self._folder)
        totals = ", ".join(f"coalesce(sum({name}), 0)::BIGINT" for name in _DONE)
        once = ", ".join(f"max({name}) AS {name}" for name in _DONE)
        done_files = f"SELECT {once} FROM matched WHERE is_done GROUP BY uri"  # noqa: S608 (our own names)
        done = query(f"SELECT {totals} FROM ({done_files})", views, self._folder)  # noqa: S608 (our own names)
        held.unlink()
        matched.unlink()
        return superseded[0], DoneImages(*done)

    def _write_matched(self, listed: str, held: Path) -> Path:
        """Write the listed files with the version that a batch holds, if one does. A file can have several rows."""
        matched = self._folder / "matched.parquet"
        counts = ", ".join(f"CASE WHEN held.committed THEN held.{name} ELSE 0 END AS {name}" for name in _DONE)
        self._copy(
            f"SELECT listed.*, held.number, held.committed AS is_done, {counts} FROM {listed} AS listed "  # noqa: S608
            f"LEFT JOIN held ON held.uri = listed.uri AND {_is_listed_version('held')}",
            {"listed": [self._listed], "held": [held]},
            matched,
        )
        return matched

    def _write_held(self, planned: PlannedFiles, listed: str) -> Path:
        """Write the versions of the listed files that batches hold, with their images in quarantine.

        `is_newest` marks the newest version of a file, and `is_again` a version that several batches hold. Few files
        have more than one version or batch, so the joins that these need are left to them.
        """
        known, files, held = (self._folder / f"{name}.parquet" for name in ("known", "files", "held"))
        views: dict[str, Sequence[Path]] = {"listed": [self._listed]} | planned.views
        self._copy(f"SELECT * FROM ({planned.sql}) SEMI JOIN {listed} AS listed USING (uri)", views, known)  # noqa: S608
        self._copy(
            "SELECT uri, min(fingerprint) AS fingerprint, min(number) AS number, sum(images)::BIGINT AS images, "
            "min(fingerprint) < max(fingerprint) OR min(number) < max(number) AS is_several FROM known GROUP BY uri",
            {"known": [known]},
            files,
        )
        views = {"known": [known], "files": [files]}
        in_quarantine = "(SELECT *, 0 AS retryable, 0 AS uncertain FROM known WHERE false)"
        if planned.quarantined:
            in_quarantine = "in_quarantine"
            views["in_quarantine"] = [planned.quarantined]
        unfinished = ", ".join(map(str, planned.unfinished)) or "NULL"
        counts = ", ".join(
            f"coalesce(q.{count}, 0)::BIGINT AS {name}"
            for count, name in (("images", "quarantined"), ("retryable", "retryable"), ("uncertain", "uncertain"))
        )
        self._copy(
            f"SELECT held.*, (held.number IN ({unfinished})) IS NOT TRUE AS committed, {counts} "  # noqa: S608
            f"FROM ({_VERSIONS}) AS held LEFT JOIN {in_quarantine} AS q ON q.uri = held.uri AND q.number = held.number",
            views,
            held,
        )
        known.unlink()
        files.unlink()
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


_ORDER = "listed.uri, listed.label NULLS LAST"


_VERSIONS = """
    WITH several AS (
        SELECT * FROM known SEMI JOIN (SELECT uri FROM files WHERE is_several) USING (uri)
    ), newest AS (
        SELECT uri, fingerprint, max(number) AS number, min(number) < max(number) AS is_again
        FROM several GROUP BY uri, fingerprint
    ), versions AS (
        SELECT uri, fingerprint, number, is_again, sum(images)::BIGINT AS images
        FROM several JOIN newest USING (uri, fingerprint, number) GROUP BY ALL
    ), last AS (
        SELECT uri, max(number) AS number FROM several GROUP BY uri
    )
    SELECT uri, fingerprint, number, images, false AS is_again, true AS is_newest FROM files WHERE NOT is_several
    UNION ALL
    SELECT uri, fingerprint, versions.number, images, is_again, versions.number = last.number AS is_newest
    FROM versions JOIN last USING (uri)
"""
"""Each version of a file once, with the number of the last batch that holds it."""

_OF_THE_PLACE = "SELECT uri FROM held WHERE is_newest AND committed AND retryable > 0"
"""Files whose newest version is in quarantine for a reason of its place. Another version of one is a retry."""


def _retries(*, retry_all: bool) -> str:
    """Return the query for the files to try again, and whether to look at each one first.

    Args:
        retry_all: try all files again that have images in quarantine, whatever the reason.
    """
    is_newest = f"coalesce({_is_listed_version('newest')}, false)"
    may_have_changed = "newest.retryable > newest.uncertain OR NOT newest.is_again"
    wanted = "newest.quarantined > 0" if retry_all else f"newest.retryable > 0 AND ({may_have_changed})"
    columns = ", ".join(f"listed.{name} AS {name}" for name in (*FILE_SCHEMA.names, "number", *_DONE))
    return f"""
        SELECT {columns}, {"false" if retry_all else is_newest} AS look
        FROM matched AS listed
        JOIN (SELECT * FROM held WHERE is_newest AND committed AND quarantined > 0) AS newest ON newest.uri = listed.uri
        WHERE CASE
            WHEN listed.number IS NULL THEN newest.retryable > 0
            WHEN {_IS_GONE} THEN false
            WHEN {is_newest} THEN {wanted}
            ELSE newest.quarantined > 0
        END
    """  # noqa: S608 (our own names)


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
