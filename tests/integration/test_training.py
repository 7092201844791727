"""Training through Ray Train: begun with a model, and resumed past a damaged checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from flows.parameters import RecipeParameters, RunParameters, TrainParameters
from infra.storage.checkpoints import WEIGHTS, read_record
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import open_store


@pytest.fixture(scope="module")
def tuned(main_job: Any, session_store: str) -> Iterator[Any]:
    """A run of two epochs that begins with the champion, which is champion again for the tests after these."""
    from flows.train import train

    parameters = TrainParameters(
        preset="quick",
        workers="1",
        recipe=RecipeParameters(epochs=2, learning_rate=0.001),
        run=RunParameters(from_model="champion"),
    )
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
    resumed = train(TrainParameters(workers="1", run=RunParameters(resume=tuned.run.run_id)))
    [warning] = resumed.run.warnings
    assert "epoch 2" in warning
    assert "SHA-256" in warning
    assert store.read(weights) == whole
    assert resumed.result.evaluation.log_loss == tuned.result.evaluation.log_loss
