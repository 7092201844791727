"""Plan a batch: list the inputs, drop what is already planned, and cut the rest into shards."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import JobStopped, RequestError
from infra.settings import load_settings
from infra.storage.keys import table_folder
from infra.storage.model_registry import ModelRegistry, ModelVersion
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.retries import retry_on
from infra.storage.tables.batches import NumberedBatch, NumberTaken, list_batches, take_number
from infra.storage.tables.delta import open_delta
from infra.storage.tables.plan import (
    CHUNK_ROWS,
    PIECE_SCHEMA,
    BatchPlan,
    cut_into_shards,
    find_plan,
    plan_files,
    rechunked,
    shard_work,
    work_of,
    write_plan,
)
from infra.storage.tables.staged_inputs import StagedInputs
from tasks.classification.inputs import list_files, pieces_of
from tasks.classification.options import ReadOptions
from tasks.step import step


@dataclass(frozen=True)
class PlannedWork:
    """The batches that a run of `classify` has to finish."""

    plans: list[BatchPlan]
    """Batches left unfinished by earlier runs, then a batch of new images. Empty if there is nothing to do."""
    model: ModelVersion
    already_done: int
    """Number of images among the inputs that committed batches of this table and model already contain."""


@step("resolve model")
def resolve_model(reference: str) -> ModelVersion:
    """Find the model version for a version number or an alias.

    Raises:
        ModelNotFound: no version matches.
    """
    return ModelRegistry(open_store(load_settings().store)).resolve(reference)


@step("plan batch")
def plan_batch(inputs: list[str], table: str, model: ModelVersion, options: ReadOptions) -> PlannedWork:
    """Plan a batch of the images that the table doesn't hold yet for this model.

    Unfinished batches of the same model are completed first, so their images count as planned.

    Args:
        inputs: paths or URIs of files, folders, globs or lists of images.
        table: name of the prediction table.
        model: the model version to classify with.
        options: options for reading the images.

    Raises:
        InputNotFound: an input doesn't exist, or holds no images.
        RequestError: the table has batches of this model whose images were read with other options.
    """
    settings = load_settings()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="planning-", dir=settings.state_dir) as scratch:
        return plan_inputs(
            open_store(settings.store), inputs, table=table, model=model, options=options, scratch=Path(scratch)
        )


def plan_inputs(
    store: ObjectStore, inputs: list[str], *, table: str, model: ModelVersion, options: ReadOptions, scratch: Path
) -> PlannedWork:
    """Do the work of `plan_batch`, keeping in `scratch` what doesn't fit into memory."""
    check_options(table, list_batches(store, table), str(model.version), options)
    staged = StagedInputs(scratch)
    staged.stage(list_files(inputs, options))
    return _plan_staged(store, staged, table=table, model=model, options=options, scratch=scratch)


def check_options(table: str, batches: Iterable[NumberedBatch], model_version: str, options: ReadOptions) -> None:
    """Check that the table's images were all read with the same options for this model.

    Raises:
        RequestError: an earlier batch used other options. The message names them.
    """
    for entry in batches:
        before = ReadOptions().to_record() | entry.options
        differing = [f"{name} {before[name]}" for name, value in options.to_record().items() if before[name] != value]
        if differing and entry.model_version == model_version:
            raise RequestError(
                f"Table {table} already holds predictions of model version {model_version} made with "
                f"{', '.join(differing)}. Use the same options, or another table."
            )


@retry_on(NumberTaken, attempts=10, first_wait_seconds=0.1, longest_wait_seconds=2)
def _plan_staged(
    store: ObjectStore, staged: StagedInputs, *, table: str, model: ModelVersion, options: ReadOptions, scratch: Path
) -> PlannedWork:
    version = str(model.version)
    numbered = list_batches(store, table)
    check_options(table, numbered, version, options)
    batches = [entry for entry in numbered if entry.model_version == version]
    snapshot = open_delta(store, table_folder(table))
    committed = {entry.batch for entry in batches if snapshot and snapshot.holds(entry.batch)}
    plans = [_plan_of(store, table, entry) for entry in batches if entry.batch not in committed]
    done = plan_files(store, table, [entry.batch for entry in batches], scratch)
    finished = plan_files(store, table, [entry.batch for entry in batches if entry.batch in committed], scratch)
    pieces = scratch / "pieces.parquet"
    work = _write_pieces(pieces, pieces_of(staged.new_files(done), options))
    if work:
        plan = write_plan(
            store,
            table=table,
            number=max((entry.number for entry in numbered), default=0) + 1,
            model_version=version,
            options=options.to_record(),
            inputs=cut_into_shards(_read(pieces), shard_work(work)),
            superseded=staged.superseded(done),
            scratch=scratch,
        )
        # The plan has to exist first: any run may pick up a batch as soon as it has its number.
        entry = NumberedBatch(number=plan.number, batch=plan.batch, model_version=version, options=plan.options)
        take_number(store, table, entry)
        plans.append(plan)
    return PlannedWork(plans=plans, model=model, already_done=staged.images_done(finished))


def _plan_of(store: ObjectStore, table: str, entry: NumberedBatch) -> BatchPlan:
    plan = find_plan(store, table, entry.batch)
    if plan is None:
        raise JobStopped(
            f"The plan of batch {entry.batch} of table {table} is missing from {store.root}, and the batch is not "
            "finished. Restore the object, or classify into another table."
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
