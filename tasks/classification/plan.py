"""Plan a batch: list the inputs, drop what is already planned, and cut the rest into shards."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.images import TRANSFORM_VERSION
from infra.errors import JobStopped, RequestError
from infra.storage.format import check_table, claim_table
from infra.storage.keys import plan_key
from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import ObjectStore
from infra.storage.retries import retry_on
from infra.storage.tables.planning.batches import Catalog, NumberedBatch, NumberTaken, read_catalog, take_number
from infra.storage.tables.planning.index_compaction import compact_index
from infra.storage.tables.planning.plan import (
    CHUNK_ROWS,
    PIECE_SCHEMA,
    BatchPlan,
    cut_into_shards,
    find_plan,
    local_files,
    plan_files,
    rechunked,
    shard_work,
    work_of,
    write_plan,
)
from infra.storage.tables.planning.quarantined_files import write_quarantined_files
from infra.storage.tables.planning.staged_inputs import Comparison, DoneImages, PlannedFiles, StagedInputs
from tasks.classification.inputs import list_files, no_images, pieces_of
from tasks.classification.options import ReadOptions
from tasks.classification.passed_over import PassedOver
from tasks.classification.reasons import BEYOND_A_LOOK
from tasks.classification.retries import look_at
from tasks.classification.shared_folders import check_plan, check_readable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedWork:
    """The batches that a run of `classify` has to finish."""

    plans: list[BatchPlan]
    """Batches left unfinished by earlier runs, then a batch of new images. Empty if there is nothing to do."""
    model: ModelVersion
    done: DoneImages
    """Images among the inputs that committed batches of this table and model already hold."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """What the inputs hold apart from images, by kind."""


def plan_inputs(
    store: ObjectStore,
    inputs: list[str],
    *,
    table: str,
    model: ModelVersion,
    options: ReadOptions,
    scratch: Path,
    retry_quarantined: bool = False,
    readable_folders: Sequence[str] | None = None,
) -> PlannedWork:
    """Plan a batch of the images that the table doesn't hold yet for this model. Needs neither Ray nor Prefect.

    Unfinished batches of the same model are completed first, so their images count as planned. Files with images in
    quarantine for a reason of their place get a batch of their own, if they have changed or can be read now. Such a
    file is planned as a whole, like a new version of it. So its older rows don't count any more.

    The work for the table doesn't grow with the number of its batches. On S3, planning one new image in a table of up
    to 10,000 committed batches takes at most 200 requests, plus those for listing the inputs, for Delta's log, and for
    parts of the quarantine with images between the first and the last input. A compaction merges those.

    Args:
        store: store of the table.
        inputs: paths or URIs of files, folders, globs or lists of images.
        table: name of the prediction table.
        model: the model version to classify with.
        options: options for reading the images.
        scratch: empty folder for what doesn't fit into memory.
        retry_quarantined: try all files again that have images in quarantine, whatever the reason.
        readable_folders: local folders that all workers can read. By default all.

    Raises:
        InputNotFound: an input doesn't exist, or holds no images.
        RequestError: the table has batches of this model whose images were read with other options, or a worker can't
            read a local input.
        JobStopped: the store lacks a plan, a part of the index, or the number of a batch.
        StoreMisconfigured: the store ignores conditional writes.
    """
    store.check_conditional_writes()  # before any work
    check_table(store, table)
    before = read_catalog(store, table)
    check_options(before, str(model.version), options)
    _log_transform(before, str(model.version))
    staged, passed_over = StagedInputs(scratch), PassedOver()
    staged.stage(check_readable(list_files(inputs, options, passed_over), readable_folders))
    planner = _Planner(store, table, model, options, scratch)
    work, catalog = planner.plan(staged, passed_over, retry_all=retry_quarantined)
    if not (work.plans or work.done.images) and work.passed_over.to_record():
        raise no_images(", ".join(inputs), work.passed_over)
    for plan in work.plans:
        check_plan(store, plan, readable_folders)
    compact_index(store, catalog, scratch)
    return work


def check_options(catalog: Catalog, model_version: str, options: ReadOptions) -> None:
    """Check that the table's images were all read with the same options for this model.

    The transform isn't an option. A table continues with a newer one, and its rows say which one decoded them.

    Raises:
        RequestError: an earlier batch used other options. The message names them.
    """
    earlier = catalog.options.get(model_version)
    if earlier is None:
        return
    before = ReadOptions().model_dump() | earlier
    differing = [f"{name} {before[name]}" for name, value in options.model_dump().items() if before[name] != value]
    if differing:
        raise RequestError(
            f"Table {catalog.table} already holds predictions of model version {model_version} made with "
            f"{', '.join(differing)}. Use the same options, or another table."
        )


def _log_transform(catalog: Catalog, model_version: str) -> None:
    """Say that the table's older batches were decoded by another version of the transform."""
    earlier = catalog.options.get(model_version, {}).get("transform", 1)
    if model_version in catalog.options and earlier != TRANSFORM_VERSION:
        _log.info(
            "Table %s has images that were decoded by transform %s. New images are decoded by transform %s.",
            catalog.table,
            earlier,
            TRANSFORM_VERSION,
        )


@dataclass(frozen=True)
class _Planner:
    """Plans batches of one table and model."""

    store: ObjectStore
    table: str
    model: ModelVersion
    options: ReadOptions
    scratch: Path

    @property
    def _version(self) -> str:
        return str(self.model.version)

    @retry_on(NumberTaken, attempts=10, first_wait_seconds=0.1, longest_wait_seconds=2)
    def plan(self, staged: StagedInputs, listing: PassedOver, *, retry_all: bool) -> tuple[PlannedWork, Catalog]:
        """Plan the staged files, and return the catalog of the table after that."""
        passed_over = PassedOver()  # a retry passes over the same containers again
        passed_over.merge(listing)
        catalog = read_catalog(self.store, self.table)
        check_options(catalog, self._version, self.options)
        unfinished = [entry for entry in catalog.unfinished if entry.model_version == self._version]
        plans = [_plan_of(self.store, self.table, entry) for entry in unfinished]
        compared = staged.compare(self._planned_files(catalog, staged.bounds), retry_all=retry_all)
        retries = compared.retries(lambda files: look_at(files, self.options))
        for files, is_retry in ((compared.new_files(), False), (retries, True)):
            counted = _Counted(files)
            pieces = pieces_of(counted, self.options, passed_over)
            superseded = counted if is_retry else compared
            plan = self._plan_batch(catalog, pieces, superseded, is_retry=is_retry)
            if plan is not None:
                catalog = self._take_number(catalog, plan)
                plans.append(plan)
        return PlannedWork(plans=plans, model=self.model, done=compared.done, passed_over=passed_over), catalog

    def _plan_batch(
        self, catalog: Catalog, pieces: Iterator[pa.RecordBatch], superseded: "Comparison | _Counted", *, is_retry: bool
    ) -> BatchPlan | None:
        """Write the plan of a batch of these pieces, or return None if there are none."""
        path = self.scratch / "pieces.parquet"
        work = _write_pieces(path, pieces)
        if not work:
            return None
        return write_plan(
            self.store,
            table=self.table,
            number=catalog.next_number,
            model_version=self._version,
            options=self.options.to_record(),
            inputs=cut_into_shards(_read(path), shard_work(work)),
            superseded=superseded.superseded,
            scratch=self.scratch,
            is_retry=is_retry,
        )

    def _take_number(self, catalog: Catalog, plan: BatchPlan) -> Catalog:
        """Give a planned batch its number. Its plan has to exist first, because any run may pick up the batch then."""
        entry = NumberedBatch(
            number=plan.number, batch=plan.batch, model_version=plan.model_version, options=plan.options
        )
        claim_table(self.store, self.table)
        take_number(self.store, self.table, entry)
        return catalog.with_batch(entry)

    def _planned_files(self, catalog: Catalog, bounds: tuple[str, str] | None) -> PlannedFiles:
        """Bring to this machine what tells which files the batches of the model hold."""
        tail = [entry for entry in catalog.tail if entry.model_version == self._version]
        plans = plan_files(self.store, self.table, [entry.batch for entry in tail], self.scratch)
        segments = [segment.range.key(self.table) for segment in catalog.segments]
        return PlannedFiles(
            model_version=self._version,
            segments=local_files(self.store, segments, self.scratch),
            unfinished=[entry.number for entry in catalog.unfinished],
            plans={entry.number: path for entry, path in zip(tail, plans, strict=True)},
            quarantined=self._quarantined_files(bounds) if bounds and self._version in catalog.options else None,
        )

    def _quarantined_files(self, bounds: tuple[str, str]) -> Path | None:
        return write_quarantined_files(
            self.store, self.table, self._version, self.scratch, bounds=bounds, uncertain_kinds=BEYOND_A_LOOK
        )


class _Counted:
    """Files that are counted as they pass."""

    def __init__(self, files: Iterator[pa.RecordBatch]) -> None:
        self._of = files
        self.superseded = 0
        """Number of files that have passed. A batch holds another version of each."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._of:
            self.superseded += len(batch)
            yield batch


def _plan_of(store: ObjectStore, table: str, entry: NumberedBatch) -> BatchPlan:
    plan = find_plan(store, table, entry.batch)
    if plan is None:
        raise JobStopped(
            f"{store.uri(plan_key(table, entry.batch))} is missing, and the batch is not finished. Restore the object, "
            "or classify into another table."
        )
    return plan


def _write_pieces(path: Path, pieces: Iterator[pa.RecordBatch]) -> float:
    work = 0.0
    with pq.ParquetWriter(path, PIECE_SCHEMA, compression="lz4") as writer:
        for chunk in rechunked(pieces):
            work += float(work_of(chunk).sum())
            writer.write_batch(chunk)
    return work


def _read(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(CHUNK_ROWS)
