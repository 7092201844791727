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
from infra.storage.checkpoints import list_checkpoints, read_files, read_record
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import open_store
from infra.storage.tables.books import BatchBooks, read_books
from infra.storage.tables.delta import DeltaSnapshot, open_delta


@pytest.fixture(scope="module")
def summary(main_job: Any) -> Any:
    return main_job


@pytest.fixture(scope="module")
def rows(summary: Any, session_store: str) -> Any:
    """Return the batch's rows as an Arrow dataset."""
    [books] = summary.classification.batches
    return table_of(session_store, books).dataset([books.batch])


def table_of(store: str, books: BatchBooks, *, quarantine: bool = False) -> DeltaSnapshot:
    folder = quarantine_folder(books.table) if quarantine else table_folder(books.table)
    snapshot = open_delta(open_store(store), folder)
    assert snapshot is not None
    return snapshot


def query(sql: str, rows: Any) -> list[Any]:
    """Run a query on rows, which it calls `rows`."""
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        return connection.execute(sql).fetchall()


def test_network_classifies_88_percent_of_the_test_images(summary: Any) -> None:
    assert summary.training.result.images == 10_000
    assert summary.training.result.accuracy >= 0.88


def test_training_used_two_workers(summary: Any) -> None:
    assert summary.training.run.workers == 2


def test_predictions_have_the_accuracy_of_the_training_flow(summary: Any, rows: Any, session_store: str) -> None:
    test_files = session_store.removeprefix("file://") + "/datasets/fashion-mnist/test/*.parquet"
    sql = f"""
        WITH labels AS (
            SELECT 'file://' || filename || '#row=' || file_row_number AS image, label
            FROM read_parquet('{test_files}', filename = true, file_row_number = true))
        SELECT count(*) FILTER (predicted_class = labels.label), count(*)
        FROM rows JOIN labels USING (image)
    """
    [(correct, images)] = query(sql, rows)
    assert (correct, images) == (summary.training.result.correct, 10_000)
    assert (summary.checked.correct, summary.checked.images) == (correct, images)


def test_every_test_image_has_one_row(rows: Any) -> None:
    [(count, images)] = query("SELECT count(*), count(DISTINCT image) FROM rows", rows)
    assert count == images == 10_000


def test_columns_of_a_row_are_consistent(rows: Any) -> None:
    names = "[" + ", ".join(f"'{name}'" for name in CLASS_NAMES) + "]"
    sql = f"""
        SELECT count(*) FROM rows
        WHERE abs(list_sum(probabilities) - 1) > 1e-5
           OR confidence <> list_max(probabilities)
           OR probabilities[predicted_class + 1] <> confidence
           OR {names}[predicted_class + 1] <> predicted_label
           OR model_version <> '1'
    """
    assert query(sql, rows) == [(0,)]


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


def test_rows_are_calibrated_with_the_versions_temperature(summary: Any, rows: Any, session_store: str) -> None:
    [books] = summary.classification.batches
    [part, *_] = table_of(session_store, books).part_names()[books.batch]
    path = f"{session_store.removeprefix('file://')}/{table_folder(books.table)}/{part}"
    metadata = pq.read_metadata(path).metadata
    assert float(metadata[b"temperature"]) == books.temperature == summary.training.result.temperature
    reliability = summary.training.result.evaluation.reliability
    [(mean,)] = query("SELECT avg(confidence) FROM rows", rows)
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
    assert again.batches == []
    assert again.work.done.images == 10_000
    assert len(read_books(open_store(session_store), "fashion-mnist-test")) == 1


def test_only_new_files_become_a_batch(summary: Any, tmp_path: Path, session_store: str) -> None:
    from flows.classify import classify

    save_pictures(session_store, tmp_path, [0, 1])
    first = classify(ClassifyParameters(inputs=[str(tmp_path)], table="pictures"))
    save_pictures(session_store, tmp_path, [2])
    second = classify(ClassifyParameters(inputs=[str(tmp_path)], table="pictures"))
    assert [books.predicted for books in first.batches] == [2]
    assert [books.predicted for books in second.batches] == [1]
    [books] = second.batches
    [row] = table_of(session_store, books).dataset([books.batch]).to_table().to_pylist()
    assert row["image"] == f"file://{tmp_path}/2.png"


def test_image_file_gets_the_same_prediction_as_the_image_in_parquet(
    summary: Any, tmp_path: Path, session_store: str, rows: Any
) -> None:
    from flows.classify import classify

    save_pictures(session_store, tmp_path, [5])
    [books] = classify(ClassifyParameters(inputs=[str(tmp_path / "5.png")], table="one-picture")).batches
    [from_file] = table_of(session_store, books).dataset().to_table().to_pylist()
    sql = "SELECT predicted_class, probabilities FROM rows WHERE image LIKE '%#row=5'"
    [(predicted_class, probabilities)] = query(sql, rows)
    assert from_file["predicted_class"] == predicted_class
    assert from_file["probabilities"] == pytest.approx(probabilities, abs=1e-6)


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
    [books] = read_books(open_store(session_store), "broken")
    assert (books.planned, books.predicted, books.quarantined) == (2, 1, 1)
    [quarantined] = table_of(session_store, books, quarantine=True).dataset().to_table().to_pylist()
    assert quarantined["image"].endswith("/broken.png")
    assert quarantined["reason_kind"] == "truncated"


def save_pictures(store: str, folder: Path, numbers: list[int]) -> None:
    """Save test images as PNG files."""
    part = next(Path(f"{store.removeprefix('file://')}/datasets/fashion-mnist/test").glob("*.parquet"))
    images = pq.read_table(part, columns=["image"]).column("image")
    for number in numbers:
        (folder / f"{number}.png").write_bytes(images[number].as_py()["bytes"])


def test_books_record_the_model(summary: Any, session_store: str) -> None:
    [books] = read_books(open_store(session_store), "fashion-mnist-test")
    assert [books] == summary.classification.batches
    assert books.planned == books.predicted == 10_000
    model = summary.classification.work.model
    assert (books.model, books.model_version, books.run_id) == (model.name, "1", model.run_id)
    assert books.weights_sha256 == model.weights_sha256


def test_predictions_show_prints_the_same_accuracy(summary: Any, session_store: str) -> None:
    fmnist = Path(sys.executable).parent / "fmnist"
    shown = subprocess.run(
        [fmnist, "predictions", "show", "fashion-mnist-test", "--json"], capture_output=True, text=True, check=True
    )
    model = json.loads(shown.stdout.splitlines()[-1])["models"]["1"]
    assert model["accuracy"] == pytest.approx(summary.training.result.accuracy)
    assert model["confusion"] == summary.training.result.confusion
    assert sum(row["images"] for row in model["classes"].values()) == 10_000
