"""`fmnist train` killed in the middle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.test_command_line import (
    descendants,
    fmnist,
    processes_of,
    started,
    wait_until_gone,
)


def test_killed_run_leaves_nothing_running_and_resumed_ends_with_the_weights_of_an_undisturbed_one(
    own_store: dict[str, str], tmp_path: Path
) -> None:
    with started("train", "--epochs", "2", wait_for="epoch 2/2", **own_store) as process:
        children = descendants(process)
        process.kill()
        process.wait()
    [killed] = [run.name for run in (tmp_path / "store" / "runs").iterdir()]
    resumed = json.loads(fmnist("train", "--resume", killed, "--json", **own_store).stdout.splitlines()[-1])
    undisturbed = json.loads(fmnist("train", "--epochs", "2", "--json", **own_store).stdout.splitlines()[-1])
    assert (resumed["run_id"], resumed["epochs"]) == (killed, 2)
    assert weights(tmp_path, killed, 2) == pytest.approx(weights(tmp_path, undisturbed["run_id"], 2), abs=1e-6)
    # Ray's agents try for a minute to tell the head, which is gone, that the raylet is gone; by now they have given up.
    assert wait_until_gone(children, 60) == []
    assert processes_of(tmp_path) == []


def weights(folder: Path, run_id: str, epoch: int) -> Any:
    from safetensors.numpy import load_file

    state = load_file(folder / f"store/runs/{run_id}/checkpoints/epoch-{epoch:04d}/model.safetensors")
    return np.concatenate([state[name].ravel() for name in sorted(state)])
