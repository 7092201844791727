"""Remove images from a prediction table for good.

A deletion first removes what names the images elsewhere: reports, shard records, and examples in the books. Then it
rewrites the parts without their rows, and at last removes every file that still holds them, also those that earlier
compactions and slower attempts left. If it is killed, repeat it: each step looks for what is left of the images, and
needs nothing from the steps before.

The plan and the index of planned files keep the URIs, so that the images are not classified again. Old entries of the
Delta log keep them as bounds of `image` until they expire. Books keep their counts. Time travel to earlier versions
fails at the files that are gone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import RequestError
from infra.storage.keys import old_report_key, plan_key, quarantine_folder, records_folder, report_key, table_folder
from infra.storage.object_store import ObjectNotFound, ObjectStat, ObjectStore, explained_delta
from infra.storage.tables.books import BatchBooks, read_books
from infra.storage.tables.commit import PartSchemas
from infra.storage.tables.delta import DeltaSnapshot, TablePart, open_delta
from infra.storage.tables.maintenance.image_match import ImageMatch, image_match
from infra.storage.tables.maintenance.leftovers import fence, unreferenced_parts
from infra.storage.tables.maintenance.rewrite import (
    canonical_images,
    provenance_of,
    read_part,
    remove_replaced_books,
    repeat_until_committed,
    rewrite_books,
    write_rows,
)
from infra.storage.tables.parts import PartFile
from infra.storage.tables.planning.batches import unfinished_batches

_SHOWN = 5


@dataclass
class Deleted:
    """What a deletion removed, or would remove in a dry run."""

    predictions: int = 0
    """Rows of predictions."""
    quarantine: int = 0
    """Rows of the quarantine."""
    files: int = 0
    """Files that no current version of the table holds, but that hold such rows."""
    batches: list[str] = field(default_factory=list)
    """Ids of the batches whose reports and records are removed."""
    examples: list[str] = field(default_factory=list)
    """Some of the images."""

    @property
    def found_anything(self) -> bool:
        """Whether anything of the images is left in the table."""
        return bool(self.predictions or self.quarantine or self.files)


def delete_images(
    store: ObjectStore, table: str, location: str, schemas: PartSchemas, *, dry_run: bool = False
) -> Deleted:
    """Remove images from a table for good. Safe to repeat, and safe next to runs and other maintenance.

    Args:
        store: store of the table.
        table: name of the prediction table.
        location: an image's URI, a file with all its images, or a glob (`image_match`).
        schemas: current schemas of the parts.
        dry_run: remove nothing, and only return what would be removed.

    Raises:
        RequestError: the table has no committed batch, or an unfinished batch holds such images.
        StoreUnavailable: the store is down. Repeat the deletion to finish it.
    """
    match = image_match(location)
    books = {entry.batch: entry for entry in read_books(store, table)}
    predictions = open_delta(store, table_folder(table))
    if not books or predictions is None:
        raise RequestError(f"{store.root} has no table {table!r} with a committed batch.")
    _check_unfinished(store, table, match)
    deletion = _Deletion(store, table, match, books)
    found = deletion.find(predictions)
    if not dry_run:
        deletion.remove_mentions(found.batches)
        for folder, schema in deletion.folders(schemas):
            repeat_until_committed(store, folder, partial(deletion.remove_rows, folder, schema))
        # The files come last. As long as some are left, a repeated deletion does all steps.
        deletion.write_checkpoints()
        deletion.remove_files(predictions)
    return found


def _check_unfinished(store: ObjectStore, table: str, match: ImageMatch) -> None:
    """Check that no unfinished batch holds the images, because its commit would bring them back.

    Raises:
        RequestError: one does.
    """
    files = ImageMatch(tuple({uri.partition("#row=")[0].partition("#member=")[0] for uri in match.uris}), match.globs)
    for entry in unfinished_batches(store, table):
        filesystem, path = store.arrow(plan_key(table, entry.batch))
        try:
            with pq.ParquetFile(path, filesystem=filesystem) as plan:
                holds = any(
                    pc.any(files.matches(rows.column(0))).as_py() for rows in plan.iter_batches(columns=["uri"])
                )
        except FileNotFoundError:
            continue  # a batch without its plan can never be finished
        if holds:
            raise RequestError(
                f"Batch {entry.batch} of table {table} isn't finished, and its plan holds such images. Finish it with "
                "`fmnist classify`, then delete them."
            )


class _Deletion:
    """The removal of some images from one table."""

    def __init__(self, store: ObjectStore, table: str, match: ImageMatch, books: dict[str, BatchBooks]) -> None:
        self._store, self._table, self._match, self._books = store, table, match, books

    def folders(self, schemas: PartSchemas) -> list[tuple[str, pa.Schema]]:
        """Return the folders of predictions and quarantine, with the schemas of their parts."""
        return [
            (table_folder(self._table), schemas.predictions),
            (quarantine_folder(self._table), schemas.quarantine),
        ]

    def find(self, predictions: DeltaSnapshot) -> Deleted:
        """Count what there is of the images, and find the batches that may mention them."""
        rows: Counter[str] = Counter()
        partitions: set[str] = set()
        found = Deleted()
        for folder in (table_folder(self._table), quarantine_folder(self._table)):
            snapshot = open_delta(self._store, folder)
            for part in self._candidates(snapshot) if snapshot else ():
                images = self._matching(f"{folder}/{part.name}")
                if images:
                    rows[folder] += len(images)
                    partitions.add(part.batch)
                    found.examples += images[: _SHOWN - len(found.examples)]
            files = self._unreferenced(predictions, folder)
            found.files += len(files)
            partitions.update(batch for batch, _ in files)
        found.predictions, found.quarantine = rows[table_folder(self._table)], rows[quarantine_folder(self._table)]
        # A compaction may have moved the rows here from any of these.
        found.batches = sorted(
            entry.batch for entry in self._books.values() if {entry.batch, entry.compacted_into} & partitions
        )
        return found

    def remove_mentions(self, batches: Iterable[str]) -> None:
        """Remove the reports and shard records of batches, and the images from the examples in all books."""
        for batch in batches:
            self._store.delete(report_key(self._table, batch))
            self._store.delete(old_report_key(self._table, batch))
            for stat in list(self._store.list(f"{records_folder(self._table, batch)}/")):
                self._store.delete(stat.key)
        rewrite_books(self._store, self._table, self._without_examples)
        remove_replaced_books(self._store, self._table, hours=0)

    def remove_rows(self, folder: str, schema: pa.Schema, snapshot: DeltaSnapshot) -> bool:
        """Replace the parts that hold the images. Return whether there are none left."""
        removed: list[str] = []
        added: dict[str, list[PartFile]] = {}
        for part in self._candidates(snapshot):
            if self._matching(f"{folder}/{part.name}"):
                removed.append(part.name)
                described = schema.with_metadata(provenance_of(self._store, folder, part))
                kept = self._kept(folder, part, schema)
                added.setdefault(part.batch, []).extend(write_rows(self._store, folder, part.batch, described, kept))
        return not removed or snapshot.replace_all(removed, added, data_change=True)

    def remove_files(self, predictions: DeltaSnapshot) -> None:
        """Remove the files that hold the images and are in no current snapshot."""
        for folder in (table_folder(self._table), quarantine_folder(self._table)):
            if files := self._unreferenced(predictions, folder):
                # A compaction in progress may be about to commit one of them.
                fence(self._store, folder)
                snapshot = open_delta(self._store, folder)
                held = {f"{folder}/{part.name}" for part in snapshot.parts()} if snapshot else set()
                for _, stat in files:
                    if stat.key not in held:
                        self._store.delete(stat.key)

    def write_checkpoints(self) -> None:
        """Write checkpoints of both tables, so that readers no longer need the old log entries."""
        for folder in (table_folder(self._table), quarantine_folder(self._table)):
            snapshot = open_delta(self._store, folder)
            if snapshot is not None:
                with explained_delta(self._store):
                    snapshot.table.create_checkpoint()
                self._store.sync_delta(f"{folder}/", snapshot.table.version(), files=False)

    def _candidates(self, snapshot: DeltaSnapshot) -> Iterator[TablePart]:
        for part in snapshot.parts():
            if part.batch in self._books and self._match.may_match(part.first_image, part.last_image):
                yield part

    def _matching(self, key: str) -> list[str]:
        """Return the images in a part that are to be removed."""
        filesystem, path = self._store.arrow(key)
        found: list[str] = []
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            columns = [name for name in ("image", "file_version") if name in file.schema_arrow.names]
            for rows in file.iter_batches(columns=columns):
                images = canonical_images(rows)
                found += images.filter(self._match.matches(images)).to_pylist()
        return found

    def _kept(self, folder: str, part: TablePart, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for rows in read_part(self._store, folder, part, schema, self._books[part.batch]):
            yield rows.filter(pc.invert(self._match.matches(rows.column("image"))))

    def _unreferenced(self, predictions: DeltaSnapshot, folder: str) -> list[tuple[str, ObjectStat]]:
        """Return files of committed batches that hold the images but are in no current snapshot."""
        found = []
        for batch, stat in unreferenced_parts(self._store, predictions, folder):
            try:
                if self._matching(stat.key):
                    found.append((batch, stat))
            except (FileNotFoundError, ObjectNotFound):
                continue  # another process has removed it
        return found

    def _without_examples(self, entry: BatchBooks) -> BatchBooks:
        named = self._match.matches(pa.array([reason.example for reason in entry.reasons], pa.string())).to_pylist()
        if not any(named):
            return entry
        reasons = [
            reason.model_copy(update={"example": ""}) if hit else reason
            for reason, hit in zip(entry.reasons, named, strict=True)
        ]
        return entry.model_copy(update={"reasons": reasons})
