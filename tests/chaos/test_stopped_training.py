"""Training that can't succeed stops on all workers with an error that says why, and leaves no checkpoint."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.harness.commands import fmnist, one_clear_line

QUICK = ("train", "--preset", "quick", "--workers", "2")


def test_training_images_without_a_class_are_refused(own_store: dict[str, str]) -> None:
    store = Path(own_store["FMNIST_STORE"])
    record = store / "datasets/fashion-mnist/dataset.json"
    dataset = json.loads(record.read_text())
    parts = pa.concat_tables(pq.read_table(store / key) for key in dataset["splits"]["train"]["parts"])
    lacking = parts.filter(pa.array(np.asarray(parts["label"]) != 7))
    pq.write_table(lacking, store / "datasets/fashion-mnist/lacking.parquet")
    dataset["splits"]["train"]["parts"] = ["datasets/fashion-mnist/lacking.parquet"]
    record.write_text(json.dumps(dataset))
    result = fmnist(*QUICK, **own_store)
    assert result.returncode != 0
    line = one_clear_line(result)
    assert "fashion-mnist" in line
    assert "train" in line
    assert "class 7 (Sneaker)" in line
    assert list(store.glob("runs/*/checkpoints/*")) == []


def test_diverging_run_stops_at_once_and_keeps_no_checkpoint(own_store: dict[str, str]) -> None:
    result = fmnist(*QUICK, "--learning-rate", "10", **own_store)
    assert result.returncode == 1
    line = one_clear_line(result)
    assert "stopped" in line
    assert "loss" in line
    assert " epoch 1" in line
    assert " step " in line
    assert list(Path(own_store["FMNIST_STORE"]).glob("runs/*/checkpoints/*")) == []
