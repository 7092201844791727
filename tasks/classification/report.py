"""Write the report of each batch: an HTML page next to the rows, and an artifact on the flow run's page."""

from typing import Any

import duckdb

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.drift import MOVED_MUCH, population_stability_index
from fmnist_model.reports.batch_markdown import render_batch_markdown
from fmnist_model.reports.batch_page import (
    PreviousMix,
    QuarantineReason,
    ReportedBatch,
    ShownImage,
    render_batch_page,
)
from infra.orchestration.events import CLASS_MIX_MOVED, announce
from infra.settings import load_settings
from infra.storage.keys import batch_report_key, errors_glob, manifest_key, parts_glob
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.prediction_table import BatchManifest, open_rows
from tasks.artifacts import run_log, show_markdown
from tasks.classification.gallery import least_confident
from tasks.classification.summarize import ClassMixShift, class_counts, previous_batch, summarize_rows
from tasks.step import step

_MAX_REASONS = 10
"""Reasons listed one by one. The report sums up the rest in one line."""
_ADDRESS, _NUMBER = r"(file|s3)://\S+", r"\b(\d[\d,]*|[0-9a-f]{2}( [0-9a-f]{2}){2,})\b"
"""Patterns for the parts of a reason that differ between images. A number may be bytes in hexadecimal."""


@step("write batch reports")
def write_batch_reports(manifests: list[BatchManifest]) -> list[str]:
    """Write `predictions/<table>/batch=<id>/_report/index.html` for each batch, and show a summary as an artifact.

    An error in a report doesn't fail the run, because the batch is committed already. It is logged instead.

    Returns:
        URIs of the reports that were written.
    """
    store = open_store(load_settings().store)
    written = []
    for manifest in manifests:
        try:
            written.append(_write(store, manifest))
        except Exception as error:  # noqa: BLE001 (the batch is committed, so no error in its report may fail the run)
            run_log().warning("Batch %s has no report: %s: %s", manifest.batch, type(error).__name__, error)
    return written


def _write(store: ObjectStore, manifest: BatchManifest) -> str:
    rows = open_rows(store, [manifest])
    summary = summarize_rows(rows)
    before = _mix_before(store, manifest, class_counts(summary))
    if before is not None and before.index >= MOVED_MUCH:
        batches = {"before": before.batch, "after": manifest.batch}
        announce(CLASS_MIX_MOVED, f"table.{manifest.table}", table=manifest.table, index=before.index, **batches)
    batch = _gather(store, manifest, summary, before, least_confident(store, manifest, rows))
    key = batch_report_key(manifest.table, manifest.batch)
    with store.publish(key) as stream:
        stream.write(render_batch_page(batch).encode())
    show_markdown("classification-report", render_batch_markdown(batch, store.uri(key)), _summary(batch))
    return store.uri(key)


def _gather(
    store: ObjectStore,
    manifest: BatchManifest,
    summary: dict[str, Any],
    before: PreviousMix | None,
    least: list[ShownImage],
) -> ReportedBatch:
    return ReportedBatch(
        table=manifest.table,
        batch=manifest.batch,
        model=f"{manifest.model.get('name', 'model')}, version {manifest.model_version}",
        planned=manifest.planned,
        predicted=manifest.predicted,
        quarantined=manifest.quarantined,
        seconds=manifest.seconds,
        images_per_second=manifest.images_per_second,
        reasons=_reasons(store, manifest),
        counts=class_counts(summary),
        confidence=[summary["classes"].get(name, {"mean_confidence": None})["mean_confidence"] for name in CLASS_NAMES],
        mean_confidence=summary["mean_confidence"],
        previous=before,
        labelled=summary["labelled"],
        accuracy=summary["accuracy"],
        confusion=summary["confusion"],
        least_confident=least,
        facts=_facts(store, manifest),
    )


def _mix_before(store: ObjectStore, manifest: BatchManifest, counts: list[int]) -> PreviousMix | None:
    previous = previous_batch(store, manifest)
    if previous is None or not manifest.predicted:
        return None
    before = class_counts(summarize_rows(open_rows(store, [previous])))
    shift = ClassMixShift(previous.batch, manifest.batch, population_stability_index(before, counts))
    return PreviousMix(shift.before, before, shift.index, shift.verdict)


def _reasons(store: ObjectStore, manifest: BatchManifest) -> list[QuarantineReason]:
    """Return the most frequent reasons, without the parts that differ between images."""
    if not manifest.error_parts:
        return []
    from pyarrow import dataset

    places = [store.arrow(key) for key in manifest.error_parts]
    quarantine: Any = dataset.dataset([path for _, path in places], filesystem=places[0][0], format="parquet")
    with duckdb.connect() as connection:
        connection.register("quarantine", quarantine)
        found = connection.execute(
            """
            SELECT left(regexp_replace(regexp_replace(reason, $address, '…', 'g'), $number, 'N', 'g'), 200) AS kind,
                count(*) AS images, min(image) FROM quarantine GROUP BY kind ORDER BY images DESC, kind
            """,
            {"address": _ADDRESS, "number": _NUMBER},
        ).fetchall()
    reasons = [QuarantineReason(*row) for row in found[:_MAX_REASONS]]
    if others := found[_MAX_REASONS:]:
        reasons.append(QuarantineReason(f"{len(others)} other reasons", sum(images for _, images, _ in others), ""))
    return reasons


def _facts(store: ObjectStore, manifest: BatchManifest) -> dict[str, str]:
    made = manifest.provenance
    return {
        "table": manifest.table,
        "batch": manifest.batch,
        "model": f"{manifest.model.get('name', 'model')}, version {manifest.model_version}",
        "weights, SHA-256": str(manifest.model.get("weights_sha256", "-")),
        "read with": ", ".join(f"{name} {value}" for name, value in manifest.options.items() if value is not None),
        "code": made.code_version,
        "committed": f"{made.created_at:%Y-%m-%d %H:%M} UTC by {made.created_by}",
        "rows": store.uri(parts_glob(manifest.table, manifest.batch)),
        "quarantine": store.uri(errors_glob(manifest.table, manifest.batch)),
        "manifest": store.uri(manifest_key(manifest.table, manifest.batch)),
    }


def _summary(batch: ReportedBatch) -> str:
    mix = f" Class mix compared with the previous batch: {batch.previous.verdict}." if batch.previous else ""
    return (
        f"{batch.predicted:,} images predicted in table {batch.table}, {batch.quarantined:,} quarantined.{mix} "
        f"Batch {batch.batch}, {batch.model}."
    )
