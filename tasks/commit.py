"""Check the books of a batch and commit it."""

from infra.batch_log import mark_committed
from infra.errors import JobStopped
from infra.object_store import open_store
from infra.prediction_table import BatchManifest, commit
from infra.settings import load_settings
from tasks.classification import ClassifiedBatch
from tasks.planning import PlannedWork
from tasks.step import step


class TooManyErrors(JobStopped):
    """A larger share of a batch's images was quarantined than is allowed."""


@step("commit batch")
def commit_batches(work: PlannedWork, batches: list[ClassifiedBatch], max_error_share: float) -> list[BatchManifest]:
    """Commit each batch whose books balance.

    Raises:
        BooksDontBalance: an image is neither predicted nor quarantined, or is both.
        TooManyErrors: more than `max_error_share` of a batch's images were quarantined; its books are written all the
            same, and say which.
    """
    store = open_store(load_settings().store)
    model = work.model.model_dump(mode="json")
    manifests = [commit(store, batch.plan, batch.books, model=model, seconds=batch.seconds) for batch in batches]
    if manifests:
        mark_committed(store, manifests[0].table, {manifest.batch for manifest in manifests})
    for manifest in manifests:
        if manifest.quarantined > max_error_share * manifest.planned:
            raise TooManyErrors(
                f"Batch {manifest.batch} of {manifest.table}: {manifest.quarantined:,} of {manifest.planned:,} images "
                f"could not be classified, more than the {max_error_share:.1%} allowed. Their URIs and reasons are in "
                f"{store.uri(manifest.error_parts[0])}" + (" and beside it." if len(manifest.error_parts) > 1 else ".")
            )
    return manifests
