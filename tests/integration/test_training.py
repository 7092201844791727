"""Training through Ray Train: begun with a model, resumed past a damaged checkpoint, refused, stopped."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow

from flows.parameters import TrainParameters
from fmnist_model.errors import InvalidDataset
from fmnist_model.recipe import PRESETS
from infra.checkpoints import WEIGHTS, list_checkpoints, list_runs, read_record
from infra.errors import JobError
from infra.model_registry import ModelRegistry
from infra.object_store import open_store
from infra.ray_cluster import ClusterTaskRunner, on_ray
from tasks.run import RunToTrain
from tasks.training import train_network


@flow(task_runner=ClusterTaskRunner())
def train_alone(run: RunToTrain, dataset: Any) -> Any:
    return on_ray(train_network, run, dataset, "1")


@pytest.fixture(scope="module")
def tuned(main_job: Any, session_store: str) -> Iterator[Any]:
    """A run of two epochs that begins with the champion, which is champion again for the tests after these."""
    from flows.train import train

    parameters = TrainParameters(preset="quick", workers="1", epochs=2, learning_rate=0.001, from_model="champion")
    yield train(parameters)
    ModelRegistry(open_store(session_store)).point("champion", main_job.training.registration.version.version)


def test_fine_tuned_run_begins_where_the_model_stood(main_job: Any, tuned: Any, session_store: str) -> None:
    store = open_store(session_store)
    champion = read_record(store, main_job.training.run.run_id, main_job.training.run.epoch)
    steps = f"{session_store.removeprefix('file://')}/runs/{tuned.run.run_id}/steps.parquet"
    [first] = duckdb.sql(f"SELECT loss FROM '{steps}' WHERE step = 1").fetchall()[0]
    assert first < 0.5  # random weights: 2.3
    parameters = read_record(store, tuned.run.run_id, 2).parameters
    assert parameters["initial_weights"] == next(file.sha256 for file in champion.files if file.name == WEIGHTS)


def test_run_is_resumed_from_the_newest_checkpoint_that_is_whole(tuned: Any, session_store: str) -> None:
    from flows.train import train

    store = open_store(session_store)
    record = read_record(store, tuned.run.run_id, 2)
    weights = {file.name: file.key for file in record.files}[WEIGHTS]
    whole = store.read(weights)
    Path(session_store.removeprefix("file://"), weights).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    resumed = train(TrainParameters(workers="1", resume=tuned.run.run_id))
    [warning] = resumed.run.warnings
    assert warning.startswith("The checkpoint of epoch 2 is removed and its epoch trained anew: ")
    assert "SHA-256" in warning
    assert store.read(weights) == whole
    assert resumed.result.evaluation.log_loss == tuned.result.evaluation.log_loss


def test_training_images_that_lack_a_class_are_refused_by_name(main_job: Any, session_store: str) -> None:
    dataset = main_job.training.dataset
    folder = Path(session_store.removeprefix("file://"))
    parts = pa.concat_tables(pq.read_table(folder / key) for key in dataset.splits["train"].parts)
    lacking = parts.filter(pa.array(np.asarray(parts["label"]) != 7))
    pq.write_table(lacking, folder / "datasets/lacking.parquet")
    split = dataset.splits["train"].model_copy(update={"parts": ["datasets/lacking.parquet"]})
    damaged = dataset.model_copy(update={"splits": {"train": split}})
    with pytest.raises(InvalidDataset, match=r"^The split train of fashion-mnist has no image of class 7 \(Sneaker\)"):
        train_alone(RunToTrain("lacking", asdict(PRESETS["quick"])), damaged)
    assert "lacking" not in list_runs(open_store(session_store))


def test_diverging_run_is_stopped_by_its_epoch_and_step_and_keeps_no_checkpoint_of_it(
    main_job: Any, session_store: str
) -> None:
    recipe = replace(PRESETS["quick"], learning_rate=1e16)
    with pytest.raises(JobError, match=r"^Training run diverging stopped: The loss became (nan|inf) in epoch 1, step"):
        train_alone(RunToTrain("diverging", asdict(recipe)), main_job.training.dataset)
    assert list_checkpoints(open_store(session_store), "diverging") == []
