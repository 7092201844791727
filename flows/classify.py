"""The classification flow."""

from prefect import flow

from flows.parameters import ClassifyParameters
from infra.cluster.connection import connected_to_ray
from infra.orchestration.flow_progress import shows_progress
from infra.orchestration.flow_run import completed_with
from infra.orchestration.one_at_a_time import one_at_a_time
from tasks.classification.begin import plan_batch, resolve_model
from tasks.classification.classify import classify_shards
from tasks.classification.commit import check_error_share, check_quarantine, commit_batches
from tasks.classification.report import write_batch_reports
from tasks.dataset import prepare_dataset, split_uris
from tasks.summaries import ClassificationSummary


@flow(name="classify")
@connected_to_ray
@shows_progress
def classify(parameters: ClassifyParameters = ClassifyParameters()) -> ClassificationSummary:  # noqa: B008 # it is frozen
    """Classify every image that is not in the table yet, and commit the predictions as a batch."""
    table = parameters.table
    with one_at_a_time(f"classify into {table}"):
        model = resolve_model(parameters.model)
        inputs = parameters.inputs or _test_images()
        work = plan_batch(inputs, table, model, parameters.reading, retry_quarantined=parameters.retry_quarantined)
        if not work.plans:
            check_quarantine(work, table, parameters.max_error_share)
            return completed_with(ClassificationSummary(table, work, batches=[]))
        classified = classify_shards(work, parameters.resources)
        batches = commit_batches(work, classified)
        reports = write_batch_reports(batches, classified, work.passed_over)
        check_error_share(batches, parameters.max_error_share)
        return completed_with(ClassificationSummary(table, work, batches, reports))


def _test_images() -> list[str]:
    """Return the URIs of Fashion-MNIST's test images. Imports the dataset into the store if it isn't there."""
    return split_uris(prepare_dataset(), "test")
