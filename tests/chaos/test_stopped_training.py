"""Training that can't go well is stopped by name, by all workers at once, and leaves no checkpoint."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow

from fmnist_model.errors import InvalidDataset
from fmnist_model.recipe import PRESETS
from infra.checkpoints import list_checkpoints, list_runs
from infra.datasets import DatasetRecord, read_dataset
from infra.errors import JobError
from infra.object_store import open_store
from infra.ray_cluster import ClusterTaskRunner, on_ray
from tasks.run import RunToTrain
from tasks.training import train_network


@pytest.fixture(scope="module")
def fashion_mnist(running_services: None, session_store: str) -> DatasetRecord:
    dataset = read_dataset(open_store(session_store), "fashion-mnist")
    assert dataset is not None
    return dataset


@flow(task_runner=ClusterTaskRunner())
def train_alone(run: RunToTrain, dataset: Any) -> Any:
    return on_ray(train_network, run, dataset, "2")


def test_training_images_that_lack_a_class_are_refused_by_name(
    fashion_mnist: DatasetRecord, session_store: str
) -> None:
    folder = Path(session_store.removeprefix("file://"))
    parts = pa.concat_tables(pq.read_table(folder / key) for key in fashion_mnist.splits["train"].parts)
    lacking = parts.filter(pa.array(np.asarray(parts["label"]) != 7))
    pq.write_table(lacking, folder / "datasets/lacking.parquet")
    split = fashion_mnist.splits["train"].model_copy(update={"parts": ["datasets/lacking.parquet"]})
    damaged = fashion_mnist.model_copy(update={"splits": {"train": split}})
    with pytest.raises(InvalidDataset, match=r"^The split train of fashion-mnist has no image of class 7 \(Sneaker\)"):
        train_alone(RunToTrain("lacking", asdict(PRESETS["quick"])), damaged)
    assert "lacking" not in list_runs(open_store(session_store))


def test_diverging_run_is_stopped_by_its_epoch_and_step_and_keeps_no_checkpoint_of_it(
    fashion_mnist: DatasetRecord, session_store: str
) -> None:
    recipe = replace(PRESETS["quick"], learning_rate=1e16)
    with pytest.raises(JobError, match=r"^Training run diverging stopped: The loss became (nan|inf) in epoch 1, step"):
        train_alone(RunToTrain("diverging", asdict(recipe)), fashion_mnist)
    assert list_checkpoints(open_store(session_store), "diverging") == []
