"""Write the report of each batch: an HTML page next to the rows, and an artifact on the flow run's page."""

from collections.abc import Sequence

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.drift import MOVED_MUCH, population_stability_index
from fmnist_model.reports.batch_markdown import render_batch_markdown
from fmnist_model.reports.batch_page import (
    PassedOverFiles,
    PreviousMix,
    QuarantineReason,
    ReportedBatch,
    ShownImage,
    render_batch_page,
)
from infra.orchestration.events import CLASS_MIX_MOVED, announce
from infra.settings import load_settings
from infra.storage.keys import books_folder, quarantine_folder, report_key, table_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import BatchBooks, read_books
from infra.storage.tables.records import OTHER_REASONS, Reason
from tasks.artifacts import run_log, show_markdown
from tasks.classification.classify import ClassifiedBatch
from tasks.classification.gallery import show_least_confident
from tasks.classification.passed_over import PassedOver
from tasks.classification.summarize import ClassMixShift, class_counts, describe, previous_batch
from tasks.step import step

_MAX_REASONS = 10
"""Reasons listed one by one. The report sums up the rest in one line."""


@step("write batch reports")
def write_batch_reports(
    batches: list[BatchBooks], classified: list[ClassifiedBatch], passed_over: PassedOver
) -> list[str]:
    """Write `predictions/<table>/_reports/<batch>/index.html` for each batch, and show a summary as an artifact.

    An error in a report doesn't fail the run, because the batch is committed already. It is logged instead.

    Args:
        batches: the committed batches, the newest last.
        classified: the same batches before they were committed.
        passed_over: what the run's inputs hold apart from images. The newest batch's report shows it.

    Returns:
        URIs of the reports that were written.
    """
    store = open_store(load_settings().store)
    written = []
    for books, batch in zip(batches, classified, strict=True):
        shown = passed_over if books is batches[-1] else PassedOver()
        try:
            written.append(_write(store, books, batch, shown))
        except Exception as error:  # noqa: BLE001 (the batch is committed, so no error in its report may fail the run)
            run_log().warning("Batch %s has no report: %s: %s", books.batch, type(error).__name__, error)
    return written


def _write(store: ObjectStore, books: BatchBooks, classified: ClassifiedBatch, passed_over: PassedOver) -> str:
    before = _mix_before(store, books)
    if before is not None and before.index >= MOVED_MUCH:
        compared = {"before": before.batch, "after": books.batch}
        announce(CLASS_MIX_MOVED, f"table.{books.table}", table=books.table, index=before.index, **compared)
    least = show_least_confident(store, classified.plan, classified.records.values())
    batch = _gather(store, books, before, least, passed_over)
    key = report_key(books.table, books.batch)
    with store.publish(key) as stream:
        stream.write(render_batch_page(batch).encode())
    show_markdown("classification-report", render_batch_markdown(batch, store.uri(key)), _summary(batch))
    return store.uri(key)


def _gather(
    store: ObjectStore,
    books: BatchBooks,
    before: PreviousMix | None,
    least: list[ShownImage],
    passed_over: PassedOver,
) -> ReportedBatch:
    summary = describe(books.summary)
    return ReportedBatch(
        table=books.table,
        batch=books.batch,
        model=f"{books.model or 'model'}, version {books.model_version}",
        planned=books.planned,
        predicted=books.predicted,
        quarantined=books.quarantined,
        seconds=books.seconds,
        images_per_second=books.images_per_second,
        reasons=_reasons(books.reasons),
        counts=class_counts(books.summary),
        confidence=[summary["classes"].get(name, {"mean_confidence": None})["mean_confidence"] for name in CLASS_NAMES],
        mean_confidence=summary["mean_confidence"],
        previous=before,
        labelled=summary["labelled"],
        accuracy=summary["accuracy"],
        confusion=summary["confusion"],
        least_confident=least,
        facts=_facts(store, books),
        passed_over=[PassedOverFiles(found.kind, found.count, found.examples) for found in passed_over.kinds()],
    )


def _mix_before(store: ObjectStore, books: BatchBooks) -> PreviousMix | None:
    previous = previous_batch(read_books(store, books.table), books) if books.predicted else None
    if previous is None:
        return None
    before, counts = class_counts(previous.summary), class_counts(books.summary)
    shift = ClassMixShift(previous.batch, books.batch, population_stability_index(before, counts))
    return PreviousMix(shift.before, before, shift.index, shift.verdict)


def _reasons(reasons: Sequence[Reason]) -> list[QuarantineReason]:
    """Return the most frequent reasons one by one, and the others in one line."""
    named = [reason for reason in reasons if reason.reason != OTHER_REASONS][:_MAX_REASONS]
    shown = [QuarantineReason(reason.reason, reason.images, reason.example) for reason in named]
    if rest := sum(reason.images for reason in reasons) - sum(reason.images for reason in named):
        shown.append(QuarantineReason(OTHER_REASONS, rest, ""))
    return shown


def _facts(store: ObjectStore, books: BatchBooks) -> dict[str, str]:
    made = books.provenance
    return {
        "table": books.table,
        "batch": books.batch,
        "model": f"{books.model or 'model'}, version {books.model_version}",
        "weights, SHA-256": books.weights_sha256 or "-",
        "read with": ", ".join(f"{name} {value}" for name, value in books.options.items() if value is not None),
        "code": made.code_version,
        "committed": f"{made.created_at:%Y-%m-%d %H:%M} UTC by {made.created_by}",
        "predictions": store.uri(table_folder(books.table)),
        "quarantine": store.uri(quarantine_folder(books.table)),
        "books": store.uri(books_folder(books.table)),
    }


def _summary(batch: ReportedBatch) -> str:
    mix = f" Class mix compared with the previous batch: {batch.previous.verdict}." if batch.previous else ""
    return (
        f"{batch.predicted:,} images predicted in table {batch.table}, {batch.quarantined:,} quarantined.{mix} "
        f"Batch {batch.batch}, {batch.model}."
    )
