"""Commit batches whose books balance, and fail the run if too many images are quarantined."""

from typing import Any

from infra.errors import JobStopped
from infra.orchestration.events import BATCH_COMMITTED, BATCH_OVER_ERROR_SHARE, announce
from infra.settings import load_settings
from infra.storage.batch_log import mark_committed
from infra.storage.keys import manifest_key
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.prediction_table import BatchManifest, commit
from tasks.classification.classify import ClassifiedBatch
from tasks.classification.plan import PlannedWork
from tasks.step import step


class TooManyErrors(JobStopped):
    """A larger share of a batch's images is quarantined than allowed."""


@step("commit batch")
def commit_batches(work: PlannedWork, batches: list[ClassifiedBatch]) -> list[BatchManifest]:
    """Check the books of each batch and commit it.

    Raises:
        BooksDontBalance: an image is missing from the books, or counted twice.
    """
    store = open_store(load_settings().store)
    model = work.model.model_dump(mode="json")
    manifests = [commit(store, batch.plan, batch.books, model=model, seconds=batch.seconds) for batch in batches]
    if manifests:
        mark_committed(store, manifests[0].table, {manifest.batch for manifest in manifests})
    for manifest in manifests:
        _announce(
            BATCH_COMMITTED,
            manifest,
            planned=manifest.planned,
            predicted=manifest.predicted,
            quarantined=manifest.quarantined,
            model_version=manifest.model_version,
            manifest=store.uri(manifest_key(manifest.table, manifest.batch)),
        )
    return manifests


@step("check error share")
def check_error_share(manifests: list[BatchManifest], max_error_share: float) -> None:
    """Fail the run if a committed batch has too many images in quarantine. The batch stays committed.

    Args:
        manifests: the committed batches.
        max_error_share: largest allowed share of quarantined images, 0 to 1.

    Raises:
        TooManyErrors: a batch is over the limit. The message says where its quarantine is.
    """
    store = open_store(load_settings().store)
    over = [manifest for manifest in manifests if manifest.quarantined > max_error_share * manifest.planned]
    for manifest in over:
        _announce(
            BATCH_OVER_ERROR_SHARE,
            manifest,
            share=manifest.quarantined / manifest.planned,
            allowed=max_error_share,
            quarantine=store.uri(manifest.error_parts[0]),
        )
    if over:
        raise TooManyErrors("\n".join(_too_many_errors(store, manifest, max_error_share) for manifest in over))


def _announce(event: str, manifest: BatchManifest, /, **payload: Any) -> None:
    announce(event, f"table.{manifest.table}", table=manifest.table, batch=manifest.batch, **payload)


def _too_many_errors(store: ObjectStore, manifest: BatchManifest, max_error_share: float) -> str:
    return (
        f"Batch {manifest.batch} of {manifest.table}: {manifest.quarantined:,} of {manifest.planned:,} images "
        f"could not be classified, more than the {max_error_share:.1%} allowed. Their URIs and reasons are in "
        f"{store.uri(manifest.error_parts[0])}" + (" and next to it." if len(manifest.error_parts) > 1 else ".")
    )
