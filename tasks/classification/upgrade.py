"""Upgrade a store of before Delta Lake: turn its prediction tables into Delta tables.

Parts with predictions are not rewritten, and nothing of the old layout is deleted. You can interrupt an upgrade at any
moment and repeat it, and two at once don't disturb each other.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from fmnist_model.predictions import prediction_schema, quarantine_schema
from infra.settings import load_settings
from infra.storage.format import has_format, old_tables, write_format
from infra.storage.keys import part_name, quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore
from infra.storage.retries import retry_on
from infra.storage.tables import upgrade as old
from infra.storage.tables.books import BatchBooks, write_books
from infra.storage.tables.delta import ensure_delta
from infra.storage.tables.parts import PartFile, open_part
from infra.storage.tables.records import PredictionSummary, Reason
from tasks.classification.options import ReadOptions
from tasks.classification.reasons import general_reason, reason_kind
from tasks.classification.summarize import summarize_rows
from tasks.classification.upgraded_shards import convert_quarantine, take_over_shards

BATCHES_AT_ONCE = 500
"""Batches in one commit of a Delta table."""
_MAX_REASONS = 50
"""Reasons that the books list one by one."""


@dataclass(frozen=True)
class UpgradedTable:
    """A table that is a Delta table now."""

    table: str
    batches: int
    """Number of committed batches."""
    unfinished: int
    """Number of batches that the next run of `classify` finishes."""
    predicted: int
    """Number of rows with predictions."""
    quarantined: int
    """Number of quarantined images."""


@dataclass(frozen=True)
class _CommittedBatch:
    number: int
    entry: old.OldBatch
    manifest: old.OldManifest
    superseded: int


def upgrade_store(store: ObjectStore, report: Callable[[str], None]) -> list[UpgradedTable]:
    """Turn every old table into a Delta table, and write `format.json`.

    Args:
        store: the store.
        report: gets a line of text for each step.

    Returns:
        The upgraded tables. Empty if there was nothing to upgrade.

    Raises:
        NewerFormat: a newer version of fmnist-jobs has written the store.
        JobStopped: an object of an old table is missing or can't be parsed.
        TableChanged: a run of an older version has changed a table during the upgrade, again and again.
    """
    has_format(store)
    store.check_conditional_writes()
    state = load_settings().state_dir
    state.mkdir(parents=True, exist_ok=True)
    upgraded = []
    for table in old_tables(store):
        with tempfile.TemporaryDirectory(prefix="upgrade-", dir=state) as scratch:
            found = _upgrade_table(store, table, report, Path(scratch))
        if found is not None:
            upgraded.append(found)
    write_format(store)
    return upgraded


@retry_on(old.TableChanged, attempts=5, first_wait_seconds=1, longest_wait_seconds=10)
def _upgrade_table(
    store: ObjectStore, table: str, report: Callable[[str], None], scratch: Path
) -> UpgradedTable | None:
    log = old.read_old_log(store, table)
    if log is None:
        return None
    report(f"{table}: {len(log.batches):,} batches")
    uris = old.CanonicalUris()
    superseded = old.count_superseded(store, log, uris, scratch)
    known = old.known_numbers(store, log)
    totals = Counter[str]()
    for first in range(0, len(log.batches), BATCHES_AT_ONCE):
        chosen = list(enumerate(log.batches, 1))[first : first + BATCHES_AT_ONCE]
        manifests = old.read_manifests(store, table, [entry for _, entry in chosen])
        for number, entry in chosen:
            if number not in known:
                old.convert_plan(
                    store,
                    table,
                    entry,
                    number=number,
                    superseded=superseded.get(number, 0),
                    uris=uris,
                    scratch=scratch,
                )
                old.number_batch(store, table, entry, number)
        for (_, entry), manifest in zip(chosen, manifests, strict=True):
            if manifest is None:
                take_over_shards(store, table, entry.batch, uris)
        committed = [
            _CommittedBatch(number, entry, manifest, superseded.get(number, 0))
            for (number, entry), manifest in zip(chosen, manifests, strict=True)
            if manifest
        ]
        _commit(store, table, committed, uris, report)
        totals["batches"] += len(committed)
        totals["unfinished"] += len(chosen) - len(committed)
        totals["predicted"] += sum(batch.manifest.predicted for batch in committed)
        totals["quarantined"] += sum(batch.manifest.quarantined for batch in committed)
        report(f"{table}: {first + len(chosen):,}/{len(log.batches):,} batches, {totals['predicted']:,} predictions")
    old.finish_table(store, log)
    return UpgradedTable(
        table=table,
        batches=totals["batches"],
        unfinished=totals["unfinished"],
        predicted=totals["predicted"],
        quarantined=totals["quarantined"],
    )


def _commit(
    store: ObjectStore,
    table: str,
    batches: Sequence[_CommittedBatch],
    uris: old.CanonicalUris,
    report: Callable[[str], None],
) -> None:
    """Commit quarantine, books and predictions of batches, in this order, unless the Delta tables hold them."""
    from deltalake.exceptions import CommitFailedError

    try:
        _commit_quarantine(store, table, batches, uris)
        _commit_predictions(store, table, batches, uris, report)
    except CommitFailedError:
        raise old.TableChanged(f"Another upgrade commits batches of table {table} in {store.root}.") from None


def _commit_quarantine(
    store: ObjectStore, table: str, batches: Sequence[_CommittedBatch], uris: old.CanonicalUris
) -> None:
    folder = quarantine_folder(table)
    snapshot = ensure_delta(
        store,
        folder,
        quarantine_schema(),
        name=f"quarantine of {table}",
        description="One image that could not be classified per row",
    )
    missing = [batch for batch in batches if not snapshot.holds(batch.entry.batch)]
    if missing:
        snapshot.add({batch.entry.batch: _write_quarantine(store, table, batch, uris) for batch in missing})


def _write_quarantine(
    store: ObjectStore, table: str, batch: _CommittedBatch, uris: old.CanonicalUris
) -> list[PartFile]:
    parts = []
    for number, key in enumerate(batch.manifest.error_parts):
        name = part_name(batch.entry.batch, number, uuid4().hex[:12])
        with open_part(store, quarantine_folder(table), name, quarantine_schema()) as part:
            for rows in old.old_rows(store, key):
                part.write(convert_quarantine(rows, batch.number, batch.entry.model_version, uris))
        parts.append(part.finished)
    return parts


def _commit_predictions(
    store: ObjectStore,
    table: str,
    batches: Sequence[_CommittedBatch],
    uris: old.CanonicalUris,
    report: Callable[[str], None],
) -> None:
    # Old parts have no column `file_version`: readers take the number of the batch instead. They have no `transform`
    # either, which means 1.
    schema = prediction_schema()
    for at in map(schema.get_field_index, ("file_version", "transform")):
        schema = schema.set(at, schema.field(at).with_nullable(True))
    folder, description = table_folder(table), "One prediction per row"
    snapshot = ensure_delta(store, folder, schema, name=table, description=description)
    missing = [batch for batch in batches if not snapshot.holds(batch.entry.batch)]
    if not missing:
        return
    parts = {batch.entry.batch: old.committed_parts(store, table, batch.manifest) for batch in missing}
    for batch in missing:
        found = sum(part.rows for part in parts[batch.entry.batch])
        if found != batch.manifest.predicted:
            report(
                f"{table}: the parts of batch {batch.entry.batch} have {found:,} rows, but its manifest says "
                f"{batch.manifest.predicted:,}. A late worker of the older version may have overwritten them."
            )
    write_books(store, [_books(store, table, batch, uris) for batch in missing])
    snapshot.add(parts)


def _books(store: ObjectStore, table: str, batch: _CommittedBatch, uris: old.CanonicalUris) -> BatchBooks:
    manifest, entry = batch.manifest, batch.entry
    model, calibrates = manifest.model, ReadOptions.from_record(entry.options).calibrate
    return BatchBooks(
        table=table,
        batch=entry.batch,
        number=batch.number,
        model=model.get("name"),
        model_version=entry.model_version,
        run_id=model.get("run_id"),
        weights_sha256=model.get("weights_sha256"),
        temperature=model.get("temperature", 1.0) if calibrates else 1.0,
        options=entry.options,
        shards=len(manifest.parts),
        planned=manifest.planned,
        predicted=manifest.predicted,
        quarantined=manifest.quarantined,
        superseded=batch.superseded,
        reasons=_reasons(store, manifest.error_parts, uris),
        summary=_summary(store, manifest.parts),
        seconds=manifest.seconds,
        provenance=manifest.provenance,
    )


def _summary(store: ObjectStore, keys: Sequence[str]) -> PredictionSummary:
    import duckdb

    columns = ["predicted_class", "label", "confidence"]
    schema = pa.schema([prediction_schema().field(name) for name in columns])
    rows = (batch.cast(schema) for batch in chain.from_iterable(old.old_rows(store, key, columns) for key in keys))
    with duckdb.connect() as connection:
        connection.register("newest", pa.RecordBatchReader.from_batches(schema, rows))
        return summarize_rows(connection)


def _reasons(store: ObjectStore, keys: Sequence[str], uris: old.CanonicalUris) -> list[Reason]:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for rows in chain.from_iterable(old.old_rows(store, key, ["image", "reason"]) for key in keys):
        images, reasons = uris.of_images(rows.column("image")), rows.column("reason")
        for image, reason in zip(images.to_pylist(), reasons.to_pylist(), strict=True):
            found = reason_kind(reason), general_reason(reason)
            counts[found] += 1
            examples.setdefault(found, image)
    return [
        Reason(kind=found[0], reason=found[1], images=count, example=examples[found])
        for found, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_REASONS]
    ]
