"""Plan a batch: list the inputs, drop what is already planned, and cut the rest into shards."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
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
from infra.storage.tables.planning.staged_inputs import PlannedFiles, StagedInputs
from tasks.classification.inputs import list_files, pieces_of
from tasks.classification.options import ReadOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedWork:
    """The batches that a run of `classify` has to finish."""

    plans: list[BatchPlan]
    """Batches left unfinished by earlier runs, then a batch of new images. Empty if there is nothing to do."""
    model: ModelVersion
    already_done: int
    """Number of images among the inputs that committed batches of this table and model already contain."""


def plan_inputs(
    store: ObjectStore, inputs: list[str], *, table: str, model: ModelVersion, options: ReadOptions, scratch: Path
) -> PlannedWork:
    """Plan a batch of the images that the table doesn't hold yet for this model. Needs neither Ray nor Prefect.

    Unfinished batches of the same model are completed first, so their images count as planned. The work for the table
    doesn't grow with the number of its batches. On S3, planning one new image in a table of up to 10,000 committed
    batches takes at most 200 requests, plus those for listing the inputs and for Delta's log.

    Args:
        store: store of the table.
        inputs: paths or URIs of files, folders, globs or lists of images.
        table: name of the prediction table.
        model: the model version to classify with.
        options: options for reading the images.
        scratch: empty folder for what doesn't fit into memory.

    Raises:
        InputNotFound: an input doesn't exist, or holds no images.
        RequestError: the table has batches of this model whose images were read with other options.
        JobStopped: the store lacks a plan, a part of the index, or the number of a batch.
        StoreMisconfigured: the store ignores conditional writes.
    """
    store.check_conditional_writes()  # before any work
    check_table(store, table)
    catalog = read_catalog(store, table)
    check_options(catalog, str(model.version), options)
    _log_transform(catalog, str(model.version))
    staged = StagedInputs(scratch)
    staged.stage(list_files(inputs, options))
    work, catalog = _plan_staged(store, staged, table=table, model=model, options=options, scratch=scratch)
    compact_index(store, catalog, scratch)
    return work


def check_options(catalog: Catalog, model_version: str, options: ReadOptions) -> None:
    """Check that the table's images were all read with the same options for this model.

    The transform is no option. A table goes on with a newer one, and its rows say which one decoded them.

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


@retry_on(NumberTaken, attempts=10, first_wait_seconds=0.1, longest_wait_seconds=2)
def _plan_staged(
    store: ObjectStore, staged: StagedInputs, *, table: str, model: ModelVersion, options: ReadOptions, scratch: Path
) -> tuple[PlannedWork, Catalog]:
    """Plan the staged files, and return the catalog of the table after that."""
    version = str(model.version)
    catalog = read_catalog(store, table)
    check_options(catalog, version, options)
    unfinished = [entry for entry in catalog.unfinished if entry.model_version == version]
    plans = [_plan_of(store, table, entry) for entry in unfinished]
    compared = staged.compare(_planned_files(store, catalog, version, unfinished, scratch))
    pieces = scratch / "pieces.parquet"
    work = _write_pieces(pieces, pieces_of(compared.new_files(), options))
    if work:
        plan = write_plan(
            store,
            table=table,
            number=catalog.next_number,
            model_version=version,
            options=options.to_record(),
            inputs=cut_into_shards(_read(pieces), shard_work(work)),
            superseded=compared.superseded,
            scratch=scratch,
        )
        # The plan has to exist first: any run may pick up a batch as soon as it has its number.
        entry = NumberedBatch(number=plan.number, batch=plan.batch, model_version=version, options=plan.options)
        claim_table(store, table)
        take_number(store, table, entry)
        catalog = catalog.with_batch(entry)
        plans.append(plan)
    return PlannedWork(plans=plans, model=model, already_done=compared.images_done), catalog


def _planned_files(
    store: ObjectStore, catalog: Catalog, model_version: str, unfinished: list[NumberedBatch], scratch: Path
) -> PlannedFiles:
    """Bring to this machine what tells which files the batches of a model hold."""
    tail = [entry.batch for entry in catalog.tail if entry.model_version == model_version]
    open_batches = {entry.batch for entry in unfinished}
    return PlannedFiles(
        model_version=model_version,
        segments=local_files(store, [segment.range.key(catalog.table) for segment in catalog.segments], scratch),
        unfinished=[entry.number for entry in unfinished],
        committed_plans=plan_files(store, catalog.table, [b for b in tail if b not in open_batches], scratch),
        unfinished_plans=plan_files(store, catalog.table, [b for b in tail if b in open_batches], scratch),
    )


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
