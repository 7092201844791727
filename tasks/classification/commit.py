"""Commit batches whose books balance, and fail the run if too many images are quarantined."""

from typing import Any

from fmnist_model.predictions import prediction_schema, quarantine_schema
from infra.errors import JobStopped
from infra.orchestration.events import BATCH_COMMITTED, BATCH_OVER_ERROR_SHARE, announce
from infra.orchestration.flow_run import retried_since
from infra.settings import load_settings
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import BatchBooks, read_books
from infra.storage.tables.commit import PartSchemas, commit_batch
from infra.storage.tables.maintenance.rewrite import tidy_books
from tasks.artifacts import run_log
from tasks.classification.classify import ClassifiedBatch
from tasks.classification.options import ReadOptions
from tasks.classification.plan import PlannedWork
from tasks.classification.reasons import OF_THE_PLACE
from tasks.step import step


class TooManyErrors(JobStopped):
    """A larger share of a batch's images is quarantined than allowed."""


@step("commit batch")
def commit_batches(work: PlannedWork, batches: list[ClassifiedBatch]) -> list[BatchBooks]:
    """Check the books of each batch and commit it.

    Raises:
        BooksDontBalance: an image is missing from the books, or counted twice.
        PartsDamaged: a part is missing or damaged.
    """
    store = open_store(load_settings().store)
    committed = [commit_classified(store, work.model, batch) for batch in batches]
    for books in committed:
        _tidy(store, books.table)
        _announce(
            BATCH_COMMITTED,
            books,
            planned=books.planned,
            predicted=books.predicted,
            quarantined=books.quarantined,
            model_version=books.model_version,
            predictions=store.uri(table_folder(books.table)),
        )
    return committed


def _tidy(store: ObjectStore, table: str) -> None:
    try:
        tidy_books(store, table)
    except Exception as error:  # noqa: BLE001 (the batch is committed, so nothing that only saves time may fail the run)
        run_log().warning("The books of table %s were not merged: %s: %s", table, type(error).__name__, error)


def commit_classified(store: ObjectStore, model: ModelVersion, batch: ClassifiedBatch) -> BatchBooks:
    """Commit one batch whose shards are all done."""
    options = ReadOptions.from_record(batch.plan.options)
    return commit_batch(
        store,
        batch.plan,
        batch.records,
        PartSchemas(prediction_schema(), quarantine_schema()),
        model=model,
        temperature=model.temperature if options.calibrate else 1.0,
        seconds=batch.seconds,
    )


@step("check error share")
def check_error_share(batches: list[BatchBooks], max_error_share: float) -> None:
    """Fail the run if a committed batch has too many images in quarantine. The batch stays committed.

    Args:
        batches: the committed batches.
        max_error_share: largest allowed share of quarantined images, 0 to 1.

    Raises:
        TooManyErrors: a batch is over the limit. The message says where its quarantine is.
    """
    store = open_store(load_settings().store)
    over = [books for books in batches if error_share(books) > max_error_share]
    for books in over:
        _announce(
            BATCH_OVER_ERROR_SHARE,
            books,
            share=error_share(books),
            allowed=max_error_share,
            quarantine=store.uri(quarantine_folder(books.table)),
        )
    if over:
        raise TooManyErrors("\n".join(_too_many_errors(store, books, max_error_share) for books in over))


@step("check quarantine")
def check_quarantine(work: PlannedWork, table: str, max_error_share: float) -> None:
    """Fail a run without new images if too many of its images are in quarantine.

    So a run that failed doesn't succeed when you repeat it. Images in quarantine for a reason of their place count only
    if Prefect retries the run that put them there, because a file that is gone for good would fail every later run.

    Args:
        work: a plan without batches.
        table: name of the prediction table.
        max_error_share: largest allowed share of quarantined images, 0 to 1.

    Raises:
        TooManyErrors: more images are in quarantine.
    """
    done, store, started = work.done, open_store(load_settings().store), retried_since()
    if started is not None:
        version = str(work.model.version)
        of_model = [books for books in read_books(store, table) if books.model_version == version]
        check_error_share.fn([books for books in of_model if books.provenance.created_at >= started], max_error_share)
    counted = done.quarantined - done.retryable
    if counted / max(done.images, 1) > max_error_share:
        raise TooManyErrors(
            f"Nothing new: table {table} holds all {done.images:,} images, "
            f"{done.images - done.quarantined:,} predicted and {done.quarantined:,} in quarantine. "
            f"Of these, {counted:,} count as errors, more than the "
            f"{max_error_share * 100:.6g}% allowed. Their URIs and reasons are in the Delta table "
            f"{store.uri(quarantine_folder(table))}. Remove the files, allow a larger --max-error-share, or try them "
            "again with --retry-quarantined."
        )


def error_share(books: BatchBooks) -> float:
    """Return the share of a batch's images that are in quarantine, 0 to 1.

    Images that were tried again don't count if they failed for a reason of their place once more.
    """
    again = sum(reason.images for reason in books.reasons if reason.kind in OF_THE_PLACE) if books.is_retry else 0
    return (books.quarantined - again) / max(books.planned, 1)


def _announce(event: str, books: BatchBooks, /, **payload: Any) -> None:
    announce(event, f"table.{books.table}", table=books.table, batch=books.batch, **payload)


def _too_many_errors(store: ObjectStore, books: BatchBooks, max_error_share: float) -> str:
    return (
        f"Batch {books.batch} of {books.table}: {books.quarantined:,} of {books.planned:,} images could not be "
        f"classified, more than the {max_error_share * 100:.6g}% allowed. Their URIs and reasons are in the Delta "
        f"table {store.uri(quarantine_folder(books.table))}."
    )
