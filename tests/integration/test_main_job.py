"""Check the results of one main job on real data."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.parameters import ClassifyParameters
from fmnist_model.classes import CLASS_NAMES
from infra.storage.batch_log import committed_batches
from infra.storage.checkpoints import list_checkpoints, read_files, read_record
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import open_store


@pytest.fixture(scope="module")
def summary(main_job: Any) -> Any:
    return main_job


@pytest.fixture(scope="module")
def parts(summary: Any, session_store: str) -> str:
    """Return a glob of the batch's parts, for DuckDB."""
    [manifest] = summary.classification.manifests
    return f"{session_store.removeprefix('file://')}/predictions/{manifest.table}/batch={manifest.batch}/part-*.parquet"


def test_network_classifies_88_percent_of_the_test_images(summary: Any) -> None:
    assert summary.training.result.images == 10_000
    assert summary.training.result.accuracy >= 0.88


def test_training_used_two_workers(summary: Any) -> None:
    assert summary.training.run.workers == 2


def test_predictions_have_the_accuracy_of_the_training_flow(summary: Any, parts: str, session_store: str) -> None:
    test_files = session_store.removeprefix("file://") + "/datasets/fashion-mnist/test/*.parquet"
    correct, images = duckdb.sql(f"""
        WITH labels AS (
            SELECT 'file://' || filename || '#row=' || file_row_number AS image, label
            FROM read_parquet('{test_files}', filename = true, file_row_number = true))
        SELECT count(*) FILTER (predicted_class = labels.label), count(*)
        FROM read_parquet('{parts}') JOIN labels USING (image)
    """).fetchall()[0]
    assert (correct, images) == (summary.training.result.correct, 10_000)
    assert (summary.checked.correct, summary.checked.images) == (correct, images)


def test_every_test_image_has_one_row(parts: str) -> None:
    rows, images = duckdb.sql(f"SELECT count(*), count(DISTINCT image) FROM read_parquet('{parts}')").fetchall()[0]
    assert rows == images == 10_000


def test_columns_of_a_row_are_consistent(parts: str) -> None:
    names = "[" + ", ".join(f"'{name}'" for name in CLASS_NAMES) + "]"
    bad = duckdb.sql(f"""
        SELECT count(*) FROM read_parquet('{parts}')
        WHERE abs(list_sum(probabilities) - 1) > 1e-5
           OR confidence <> list_max(probabilities)
           OR probabilities[predicted_class + 1] <> confidence
           OR {names}[predicted_class + 1] <> predicted_label
           OR model_version <> '1'
    """).fetchall()[0][0]
    assert bad == 0


def test_best_and_last_checkpoints_are_kept_undamaged(summary: Any, session_store: str) -> None:
    store = open_store(session_store)
    run_id = summary.training.run.run_id
    assert list_checkpoints(store, run_id) == [2, 3, 4]  # the loss falls
    assert list(store.list_folders(f"runs/{run_id}/checkpoints/")) == ["epoch-0002", "epoch-0003", "epoch-0004"]
    for epoch in (2, 3, 4):
        assert set(read_files(store, read_record(store, run_id, epoch))) == {
            "model.safetensors",
            "trainer.pt",
        }


def test_metrics_have_a_row_per_epoch_and_the_loss_falls(summary: Any, session_store: str) -> None:
    path = session_store.removeprefix("file://") + f"/runs/{summary.training.run.run_id}/metrics.parquet"
    metrics = pq.read_table(path).to_pydict()
    assert metrics["epoch"] == [1, 2, 3, 4]
    assert metrics["loss"] == sorted(metrics["loss"], reverse=True)
    assert metrics["validation_accuracy"][-1] == summary.training.run.validation_accuracy > 0.88


def test_steps_have_a_row_each_and_average_to_the_epochs_loss(summary: Any, session_store: str) -> None:
    folder = session_store.removeprefix("file://") + f"/runs/{summary.training.run.run_id}"
    wrong, steps, first, last = duckdb.sql(f"""
        SELECT count(*) FILTER (abs(steps.mean - epochs.loss) > 1e-9), sum(steps.n), min(steps.first), max(steps.last)
        FROM (SELECT epoch, avg(loss) AS mean, count(*) AS n, min(step) AS first, max(step) AS last
              FROM '{folder}/steps.parquet' GROUP BY epoch) AS steps
        JOIN '{folder}/metrics.parquet' AS epochs USING (epoch)
    """).fetchall()[0]
    assert (wrong, steps, first, last) == (0, 4 * 53, 1, 4 * 53)  # 55,000 images, 1,024 a step


def test_event_files_have_the_curves_for_tensorboard(summary: Any, session_store: str) -> None:
    from tensorboardX.proto.event_pb2 import Event

    folder = session_store.removeprefix("file://") + f"/runs/{summary.training.run.run_id}"
    [file] = Path(folder, "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # records: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    metrics = pq.read_table(f"{folder}/metrics.parquet").to_pylist()
    assert [found["epoch/validation_loss", row["epoch"]] for row in metrics] == pytest.approx(
        [row["validation_loss"] for row in metrics]
    )
    assert len([tag for tag, _ in found if tag == "step/loss"]) == 4 * 53


def test_report_of_the_run_has_its_accuracy(summary: Any, session_store: str) -> None:
    page = Path(session_store.removeprefix("file://"), f"runs/{summary.training.run.run_id}/report/index.html")
    assert f"{summary.training.result.accuracy:.2%}" in page.read_text()


def test_version_is_champion_and_records_its_test_metrics(summary: Any, session_store: str) -> None:
    registry = ModelRegistry(open_store(session_store))
    version = registry.resolve("champion")
    assert version.version == 1
    assert version.metrics["test_accuracy"] == summary.training.result.accuracy
    assert version.metrics["test_calibration_error"] == summary.training.result.evaluation.calibration_error
    assert version.data_version.startswith("fashion-mnist@")


def test_rows_are_calibrated_with_the_versions_temperature(summary: Any, parts: str, session_store: str) -> None:
    [manifest] = summary.classification.manifests
    metadata = pq.read_metadata(f"{session_store.removeprefix('file://')}/{manifest.parts[0]}").metadata
    assert float(metadata[b"temperature"]) == manifest.model["temperature"] == summary.training.result.temperature
    reliability = summary.training.result.evaluation.reliability
    [mean] = duckdb.sql(f"SELECT avg(confidence) FROM read_parquet('{parts}')").fetchall()[0]
    assert mean == pytest.approx(np.nansum(reliability.counts * reliability.confidence) / 10_000, abs=1e-6)


def test_prefect_has_one_flow_run_with_subflows_and_tasks(summary: Any) -> None:
    from prefect.client.orchestration import get_client

    async def runs() -> tuple[dict[str, str], dict[str, str]]:
        """Return the states of the main job's flow runs and task runs, by name, without those of other tests."""
        async with get_client() as client:
            names = {flow.id: flow.name for flow in await client.read_flows()}
            flow_runs, task_runs = await client.read_flow_runs(), await client.read_task_runs(limit=200)
        [main] = [run.id for run in flow_runs if names[run.flow_id] == "train-and-classify"]
        own_tasks = {run.id for run in task_runs if run.flow_run_id == main}
        own_flows = [run for run in flow_runs if run.id == main or run.parent_task_run_id in own_tasks]
        flow_ids = {run.id for run in own_flows}
        return (
            {names[run.flow_id]: run.state_name or "" for run in own_flows},
            {run.name.rpartition("-")[0]: run.state_name or "" for run in task_runs if run.flow_run_id in flow_ids},
        )

    flow_runs, task_runs = asyncio.run(runs())
    assert flow_runs.keys() == {"train-and-classify", "train", "classify"}
    expected = {"prepare dataset", "begin run", "train network", "write metrics", "evaluate checkpoint"}
    expected |= {"register model", "write report", "prune checkpoints"}
    expected |= {"resolve model", "plan batch", "classify shards", "commit batch", "compare predictions with labels"}
    assert expected <= task_runs.keys()
    assert set(flow_runs.values()) | set(task_runs.values()) == {"Completed"}


def test_second_classification_does_nothing(summary: Any, session_store: str) -> None:
    from flows.classify import classify

    uris = [open_store(session_store).uri(key) for key in summary.training.dataset.splits["test"].parts]
    again = classify(ClassifyParameters(inputs=uris, table="fashion-mnist-test"))
    assert again.manifests == []
    assert again.work.already_done == 10_000
    assert len(committed_batches(open_store(session_store), "fashion-mnist-test")) == 1


def test_only_new_files_become_a_batch(summary: Any, tmp_path: Path, session_store: str) -> None:
    from flows.classify import classify

    save_pictures(session_store, tmp_path, [0, 1])
    first = classify(ClassifyParameters(inputs=[str(tmp_path)], table="pictures"))
    save_pictures(session_store, tmp_path, [2])
    second = classify(ClassifyParameters(inputs=[str(tmp_path)], table="pictures"))
    assert [manifest.predicted for manifest in first.manifests] == [2]
    assert [manifest.predicted for manifest in second.manifests] == [1]
    [row] = pq.read_table(f"{session_store.removeprefix('file://')}/{second.manifests[0].parts[0]}").to_pylist()
    assert row["image"] == f"file://{tmp_path}/2.png"


def test_image_file_gets_the_same_prediction_as_the_image_in_parquet(
    summary: Any, tmp_path: Path, session_store: str, parts: str
) -> None:
    from flows.classify import classify

    save_pictures(session_store, tmp_path, [5])
    [manifest] = classify(ClassifyParameters(inputs=[str(tmp_path / "5.png")], table="one-picture")).manifests
    [from_file] = pq.read_table(f"{session_store.removeprefix('file://')}/{manifest.parts[0]}").to_pylist()
    [in_parquet] = (
        duckdb.sql(f"SELECT * FROM read_parquet('{parts}') WHERE image LIKE '%#row=5'").to_arrow_table().to_pylist()
    )
    assert from_file["predicted_class"] == in_parquet["predicted_class"]
    assert from_file["probabilities"] == pytest.approx(in_parquet["probabilities"], abs=1e-6)


def test_undecodable_image_is_quarantined_and_fails_a_strict_batch(
    summary: Any, tmp_path: Path, session_store: str
) -> None:
    from flows.classify import classify
    from tasks.classification.commit import TooManyErrors

    save_pictures(session_store, tmp_path, [0])
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    parameters = ClassifyParameters(inputs=[str(tmp_path)], table="broken")
    with pytest.raises(TooManyErrors) as error:
        classify(parameters)
    assert "1 of 2" in str(error.value)
    [manifest] = committed_batches(open_store(session_store), "broken")
    assert (manifest.planned, manifest.predicted, manifest.quarantined) == (2, 1, 1)
    [error] = pq.read_table(f"{session_store.removeprefix('file://')}/{manifest.error_parts[0]}").to_pylist()
    assert error["image"].endswith("/broken.png")
    assert "truncated" in error["reason"]


def save_pictures(store: str, folder: Path, numbers: list[int]) -> None:
    """Save test images as PNG files."""
    part = next(Path(f"{store.removeprefix('file://')}/datasets/fashion-mnist/test").glob("*.parquet"))
    images = pq.read_table(part, columns=["image"]).column("image")
    for number in numbers:
        (folder / f"{number}.png").write_bytes(images[number].as_py()["bytes"])


def test_manifest_is_json_and_records_the_model(summary: Any, session_store: str) -> None:
    [manifest] = summary.classification.manifests
    path = Path(
        f"{session_store.removeprefix('file://')}/predictions/{manifest.table}/batch={manifest.batch}/_manifest.json"
    )
    recorded = json.loads(path.read_text())
    assert recorded["planned"] == recorded["predicted"] == 10_000
    assert recorded["model"]["version"] == 1


def test_predictions_show_prints_the_same_accuracy(summary: Any, session_store: str) -> None:
    fmnist = Path(sys.executable).parent / "fmnist"
    shown = subprocess.run(
        [fmnist, "predictions", "show", "fashion-mnist-test", "--json"], capture_output=True, text=True, check=True
    )
    model = json.loads(shown.stdout.splitlines()[-1])["models"]["1"]
    assert model["accuracy"] == pytest.approx(summary.training.result.accuracy)
    assert model["confusion"] == summary.training.result.confusion
    assert sum(row["images"] for row in model["classes"].values()) == 10_000
