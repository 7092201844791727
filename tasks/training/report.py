"""Write the report of a training run: an HTML page in the store, and an artifact on the flow run's page."""

import pyarrow.parquet as pq

from fmnist_model.evaluation.results import TestResult
from fmnist_model.reports.training_markdown import render_training_markdown
from fmnist_model.reports.training_page import Metrics, ReportedRun, render_training_page
from infra.settings import load_settings
from infra.storage.checkpoints import read_record
from infra.storage.keys import metrics_key, run_report_key
from infra.storage.object_store import ObjectStore, open_store
from tasks.artifacts import run_log, show_markdown
from tasks.step import step
from tasks.training.register import Registration
from tasks.training.run import TrainedRun


@step("write report")
def write_report(run: TrainedRun, result: TestResult, registration: Registration) -> str:
    """Write `runs/<run id>/report/index.html`, and show a summary as an artifact.

    Returns:
        URI of the page.
    """
    store = open_store(load_settings().store)
    reported = ReportedRun(
        run_id=run.run_id,
        facts=_facts(store, run, registration),
        recipe=registration.version.parameters,
        metrics=_read_metrics(store, run.run_id),
    )
    page = render_training_page(reported, result)
    key = run_report_key(run.run_id)
    with store.publish(key) as stream:
        stream.write(page.encode())
    _show(reported, result, store.uri(key))
    return store.uri(key)


def _show(run: ReportedRun, result: TestResult, page: str) -> None:
    try:
        markdown = render_training_markdown(run, result, page)
    except Exception as error:  # noqa: BLE001 (the page is written, so no error in its summary may fail the run)
        run_log().warning("Can't make the report's artifact: %s: %s", type(error).__name__, error)
        return
    description = (
        f"Test accuracy {result.accuracy:.2%}, calibration error {result.evaluation.calibration_error:.2%}: "
        f"{run.facts['model']}."
    )
    show_markdown("training-report", markdown, description)


def _facts(store: ObjectStore, run: TrainedRun, registration: Registration) -> dict[str, str]:
    version = registration.version
    record = read_record(store, run.run_id, run.epoch)
    return {
        "model": f"{version.name}, version {version.version} ({registration.standing})",
        "checkpoint": store.uri(record.key),
        "weights, SHA-256": version.weights_sha256,
        "data": record.data_version,
        "code": record.provenance.code_version,
        "trained": f"{record.provenance.created_at:%Y-%m-%d %H:%M} UTC by {record.provenance.created_by}",
        "workers": f"{run.workers} on {run.device}",
        "throughput": f"{run.images_per_second:,.0f} images/s",
    }


def _read_metrics(store: ObjectStore, run_id: str) -> Metrics:
    filesystem, path = store.arrow(metrics_key(run_id))
    columns: Metrics = pq.read_table(path, filesystem=filesystem).to_pydict()
    return columns
