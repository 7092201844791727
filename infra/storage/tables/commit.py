"""Commit a batch: check its books, then commit quarantine, books and predictions, in this order.

The batch exists once `predictions/<table>` has it. A run that is killed in between leaves a batch that the next run
commits, with the same records.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from infra.errors import JobError, JobStopped
from infra.provenance import Provenance
from infra.storage.keys import books_folder, quarantine_folder, table_folder
from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import ObjectStore
from infra.storage.retries import retry_on
from infra.storage.tables.books import BatchBooks, find_books, replace_books, write_books
from infra.storage.tables.delta import ensure_delta, open_delta, retry_broken
from infra.storage.tables.parts import PartFile
from infra.storage.tables.planning.plan import BatchPlan
from infra.storage.tables.records import PredictionSummary, ShardRecord, damaged_shards, summed_reasons

_MAX_REASONS = 50
"""Reasons that the books list one by one. They sum up the others by kind."""


class BooksDontBalance(JobError):
    """The images predicted and quarantined don't add up to the images planned."""


class BooksMissing(JobError):
    """A committed batch has no books."""


class PartsDamaged(JobStopped):
    """Parts of finished shards are missing or hold other bytes. The next run classifies these shards again."""


class _QuarantineChanged(JobError):
    """Another process replaced parts of the quarantine at the same moment."""


@dataclass(frozen=True)
class PartSchemas:
    """Arrow schemas of the parts."""

    predictions: pa.Schema
    quarantine: pa.Schema


@retry_broken
def commit_batch(
    store: ObjectStore,
    plan: BatchPlan,
    records: Mapping[int, ShardRecord],
    schemas: PartSchemas,
    *,
    model: ModelVersion,
    temperature: float,
    seconds: float,
) -> BatchBooks:
    """Commit a batch, unless another run has committed it. Return the books of the committed batch.

    Args:
        store: store of the table.
        plan: plan of the batch.
        records: the record of each shard.
        schemas: schemas of the parts.
        model: the version that classified.
        temperature: the temperature of the probabilities.
        seconds: time from the start of the first shard to the end of the last.

    Raises:
        BooksDontBalance: a shard is missing, or an image is neither predicted nor quarantined, or both.
        PartsDamaged: a part is missing or damaged.
        BooksMissing: the batch was committed, and its books have been lost since.
    """
    _check_books(plan, records)
    folder = table_folder(plan.table)
    predictions = ensure_delta(
        store, folder, schemas.predictions, name=plan.table, description="One prediction per row"
    )
    if not predictions.holds(plan.batch):
        _check_parts(store, plan, records)
        _commit_quarantine(store, plan, records, schemas.quarantine)
        books = _books(plan, records, model=model, temperature=temperature, seconds=seconds)
        if not write_books(store, [books]):
            replace_books(store, books)
        predictions.add({plan.batch: [part for _, entry in sorted(records.items()) for part in entry.parts]})
    committed = find_books(store, plan.table, plan.batch)
    if committed is None:
        raise BooksMissing(
            f"Table {plan.table} holds batch {plan.batch}, but {store.uri(books_folder(plan.table))} doesn't hold its "
            "books. Restore that folder from a backup that is at least as new as the predictions."
        )
    return committed


def is_committed(store: ObjectStore, table: str, batch: str) -> bool:
    """Whether a table holds a batch."""
    snapshot = open_delta(store, table_folder(table))
    return snapshot is not None and snapshot.holds(batch)


def _check_books(plan: BatchPlan, records: Mapping[int, ShardRecord]) -> None:
    where = f"Batch {plan.batch} of {plan.table}"
    missing = sorted(set(range(plan.shards)) - records.keys())
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise BooksDontBalance(f"{where}: {len(missing)} shards have no record ({shown}). Run it again.")
    for entry in records.values():
        if entry.predicted + entry.quarantined != entry.planned:
            raise BooksDontBalance(
                f"{where}, shard {entry.shard}: {entry.predicted} predicted + {entry.quarantined} quarantined is not "
                f"{entry.planned} planned."
            )
    planned = sum(entry.planned for entry in records.values())
    if planned != plan.planned:
        raise BooksDontBalance(f"{where}: its shards have {planned} images, but its plan has {plan.planned}.")


def _check_parts(store: ObjectStore, plan: BatchPlan, records: Mapping[int, ShardRecord]) -> None:
    bad = damaged_shards(store, plan, records.values())
    if bad:
        shown = ", ".join(store.uri(key) for key in list(bad.values())[:3])
        raise PartsDamaged(
            f"Batch {plan.batch} of {plan.table}: parts of {len(bad)} finished shards are missing or damaged "
            f"({shown}). Run it again, and it classifies these shards again."
        )


def _commit_quarantine(
    store: ObjectStore, plan: BatchPlan, records: Mapping[int, ShardRecord], schema: pa.Schema
) -> None:
    parts = [part for _, entry in sorted(records.items()) for part in entry.quarantine]
    folder = quarantine_folder(plan.table)
    description = "One image that could not be classified per row"
    table = ensure_delta(store, folder, schema, name=f"quarantine of {plan.table}", description=description)
    if not table.add({plan.batch: parts}):
        _replace_quarantine(store, plan, parts)


@retry_on(_QuarantineChanged, attempts=10, first_wait_seconds=0.1, longest_wait_seconds=2)
def _replace_quarantine(store: ObjectStore, plan: BatchPlan, parts: list[PartFile]) -> None:
    """Replace the quarantine that a run committed before it was killed, if parts have been damaged since then."""
    table = open_delta(store, quarantine_folder(plan.table))
    held = set(table.part_names().get(plan.batch, [])) if table else set()
    removed = held - {part.name for part in parts}
    added = [part for part in parts if part.name not in held]
    if table is None or not (removed or added) or is_committed(store, plan.table, plan.batch):
        return
    if not table.replace(plan.batch, sorted(removed), added, data_change=True):
        raise _QuarantineChanged(f"The quarantine of {plan.table} is being changed. Run it again.")


def _books(
    plan: BatchPlan, records: Mapping[int, ShardRecord], *, model: ModelVersion, temperature: float, seconds: float
) -> BatchBooks:
    return BatchBooks(
        table=plan.table,
        batch=plan.batch,
        number=plan.number,
        model=model.name,
        model_version=plan.model_version,
        run_id=model.run_id,
        weights_sha256=model.weights_sha256,
        temperature=temperature,
        options=plan.options,
        plan_digest=plan.digest,
        shards=plan.shards,
        planned=plan.planned,
        predicted=sum(entry.predicted for entry in records.values()),
        quarantined=sum(entry.quarantined for entry in records.values()),
        superseded=plan.superseded,
        is_retry=plan.is_retry,
        reasons=summed_reasons(
            (reason for _, entry in sorted(records.items()) for reason in entry.reasons), _MAX_REASONS
        ),
        summary=PredictionSummary.total(entry.summary for _, entry in sorted(records.items())),
        seconds=seconds,
        provenance=Provenance.now(),
    )
