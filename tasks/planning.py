"""Plan a batch: list the inputs, drop what is done already, cut the rest into shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from fmnist_model.images import IMAGE_COLUMN, holds_images, is_image_name
from infra.errors import RequestError
from infra.input_files import InputFile, InputNotFound, filesystem_of, list_input_files
from infra.model_registry import ModelRegistry, ModelVersion
from infra.object_store import ObjectStore, open_store
from infra.prediction_table import (
    PLAN_SCHEMA,
    BatchPlan,
    committed_batches,
    read_plan_inputs,
    uncommitted_plans,
    write_plan,
)
from infra.settings import load_settings

_SHARD_IMAGES = 50_000
"""A second or two of work for a CPU: enough to make the cost of a shard small, and enough shards to share out."""


@dataclass(frozen=True)
class PlannedWork:
    """What a run of `classify` is to do."""

    plans: list[BatchPlan]
    """Batches to finish: those that an earlier run left, or else one with what is new. Empty where nothing is."""
    model: ModelVersion
    already_done: int
    """Images among the inputs that committed batches of this table and model hold already."""


@task(name="resolve model", cache_policy=NO_CACHE)
def resolve_model(reference: str) -> ModelVersion:
    """Find the model version that a number or an alias names.

    Raises:
        ModelNotFound: there is none.
    """
    return ModelRegistry(open_store(load_settings().store)).resolve(reference)


@task(name="plan batch", cache_policy=NO_CACHE)
def plan_batch(inputs: list[str], table: str, model: ModelVersion) -> PlannedWork:
    """Write the plan of a batch with the inputs that this table and model don't hold yet.

    A batch of this model that was begun and not committed is finished first, so its images count as planned.

    Raises:
        InputNotFound: an input names nothing, or nothing that holds images.
    """
    store = open_store(load_settings().store)
    model_version = str(model.version)
    unfinished = [plan for plan in uncommitted_plans(store, table) if plan.model_version == model_version]
    done = _done(store, table, model_version, unfinished)
    new: list[dict[str, Any]] = []
    already_done = 0
    for location in inputs:
        for piece in _pieces(location):
            known = (piece["uri"], piece["fingerprint"], piece["first_row"]) in done
            already_done += piece["rows"] if known else 0
            if not known:
                done.add((piece["uri"], piece["fingerprint"], piece["first_row"]))
                new.append(piece)
    plans = list(unfinished)
    if new:
        table_of_inputs = pa.Table.from_pylist(_cut_into_shards(new), schema=PLAN_SCHEMA)
        options = {"transform": 1}
        plans.append(
            write_plan(store, table=table, model_version=model_version, options=options, inputs=table_of_inputs)
        )
    return PlannedWork(plans=plans, model=model, already_done=already_done)


def check_inputs(inputs: list[str]) -> None:
    """Make sure that every input names something to classify, before anything is started.

    Raises:
        InputNotFound: one does not.
    """
    for location in inputs:
        next(_pieces(location), None)  # a Parquet file without rows is an input, if without images


def _done(store: ObjectStore, table: str, model_version: str, unfinished: list[BatchPlan]) -> set[tuple[str, str, int]]:
    done: set[tuple[str, str, int]] = set()
    committed = (manifest for manifest in committed_batches(store, table) if manifest.model_version == model_version)
    for batch in [manifest.batch for manifest in committed] + [plan.batch for plan in unfinished]:
        columns = read_plan_inputs(store, table, batch).select(["uri", "fingerprint", "first_row"])
        done.update(zip(*(column.to_pylist() for column in columns.columns), strict=True))
    return done


def _pieces(location: str) -> Iterator[dict[str, Any]]:
    """Pieces of input by `PLAN_SCHEMA`, without their shards."""
    found = False
    for file in list_input_files(location):
        if file.uri.lower().endswith(".parquet"):
            yield from _parquet_pieces(file)
        elif is_image_name(file.uri):
            yield _piece(file, "image", 0, 1)
        else:
            continue
        found = True
    if not found:
        raise InputNotFound(f"{location} holds no images: neither image files nor Parquet files with images.")


def _piece(file: InputFile, kind: str, first_row: int, rows: int) -> dict[str, Any]:
    return {"uri": file.uri, "fingerprint": file.fingerprint, "kind": kind, "first_row": first_row, "rows": rows}


def _parquet_pieces(file: InputFile) -> Iterator[dict[str, Any]]:
    filesystem, path = filesystem_of(file.uri)
    try:
        metadata = pq.read_metadata(path, filesystem=filesystem)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RequestError(f"{file.uri} can't be read as Parquet: {error}. Remove or replace the file.") from None
    if schema.names.count(IMAGE_COLUMN) != 1 or not holds_images(schema.field(IMAGE_COLUMN).type):
        raise RequestError(
            f"{file.uri} needs one column '{IMAGE_COLUMN}' with image files or raw pixels; its columns are: "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}."
        )
    first_row = rows = 0
    for number in range(metadata.num_row_groups):
        rows += metadata.row_group(number).num_rows
        if rows >= _SHARD_IMAGES or number == metadata.num_row_groups - 1:
            if rows:
                yield _piece(file, "parquet", first_row, rows)
            first_row, rows = first_row + rows, 0


def _cut_into_shards(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number the pieces by shards of as nearly as possible the same number of images, keeping their order."""
    total = sum(piece["rows"] for piece in pieces)
    share = total / max(1, round(total / _SHARD_IMAGES))
    before = 0
    for piece in pieces:
        piece["shard"] = int((before + piece["rows"] / 2) / share)
        before += piece["rows"]
    # A piece larger than a share leaves numbers without pieces: close the gaps.
    renumbered: list[dict[str, Any]] = []
    for number, (_, group) in enumerate(groupby(pieces, key=lambda piece: piece["shard"])):
        renumbered += [piece | {"shard": number} for piece in group]
    return renumbered
