"""Train through Ray Train: fine-tune a model, and resume past a damaged checkpoint."""

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
    """Fine-tune the champion for two epochs. Afterwards, the old champion is champion again."""
    from flows.train import train

    parameters = TrainParameters(
        preset="quick",
        workers="1",
        recipe=RecipeParameters(epochs=2, learning_rate=0.001),
        run=RunParameters(from_model="champion"),
    )
    yield train(parameters)
    ModelRegistry(open_store(session_store)).point("champion", main_job.training.registration.version.version)


def test_fine_tuning_starts_from_the_models_weights(main_job: Any, tuned: Any, session_store: str) -> None:
    store = open_store(session_store)
    champion = read_record(store, main_job.training.run.run_id, main_job.training.run.epoch)
    steps = f"{session_store.removeprefix('file://')}/runs/{tuned.run.run_id}/steps.parquet"
    [first] = duckdb.sql(f"SELECT loss FROM '{steps}' WHERE step = 1").fetchall()[0]
    assert first < 0.5  # random weights: 2.3
    parameters = read_record(store, tuned.run.run_id, 2).parameters
    assert parameters["initial_weights"] == next(file.sha256 for file in champion.files if file.name == WEIGHTS)


def test_run_resumes_from_the_newest_undamaged_checkpoint(tuned: Any, session_store: str) -> None:
    from flows.train import train

    store = open_store(session_store)
    record = read_record(store, tuned.run.run_id, 2)
    weights = {file.name: file.key for file in record.files}[WEIGHTS]
    undamaged = store.read(weights)
    Path(session_store.removeprefix("file://"), weights).write_bytes(undamaged[:-1] + bytes([undamaged[-1] ^ 1]))
    resumed = train(TrainParameters(workers="1", run=RunParameters(resume=tuned.run.run_id)))
    [warning] = resumed.run.warnings
    assert "epoch 2" in warning
    assert "SHA-256" in warning
    assert store.read(weights) == undamaged
    assert resumed.result.evaluation.log_loss == tuned.result.evaluation.log_loss
