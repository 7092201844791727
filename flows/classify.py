"""The classification flow."""

from prefect import flow

from flows.parameters import ClassifyParameters
from infra.flow_progress import reported
from infra.ray_cluster import ClusterTaskRunner, on_ray
from tasks.classification import classify_shards
from tasks.commit import commit_batches
from tasks.planning import plan_batch, resolve_model
from tasks.summaries import ClassificationSummary


@flow(name="classify", task_runner=ClusterTaskRunner())
@reported
def classify(parameters: ClassifyParameters) -> ClassificationSummary:
    """Classify every image that the table does not hold yet, and commit the predictions as a batch."""
    model = resolve_model(parameters.model)
    work = plan_batch(parameters.inputs, parameters.table, model, parameters.read_options())
    if not work.plans:
        return ClassificationSummary(table=parameters.table, work=work, manifests=[])
    batches = on_ray(classify_shards, work, parameters.resources())
    manifests = commit_batches(work, batches, parameters.max_error_share)
    return ClassificationSummary(table=parameters.table, work=work, manifests=manifests)
