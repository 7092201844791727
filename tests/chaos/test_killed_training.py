"""`fmnist train` with a process of it killed at a random moment, then resumed where it did not go on by itself.

In the end its weights are those of an undisturbed run, and nothing of it is running.
"""

import json
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.harness.commands import descendants, fmnist, processes_of, started, wait_until_gone

EPOCHS = 6
"""Of the preset quick."""
QUICK = ("train", "--preset", "quick", "--workers", "2", "--keep-best", "0")
VICTIMS = {"worker": "RayTrainWorker", "controller": "TrainController", "command": ""}
"""By the names that Ray gives to the processes."""


@pytest.fixture(scope="module")
def undisturbed(module_store: dict[str, str]) -> Any:
    """Weights of a run that nothing happened to."""
    said = json.loads(fmnist(*QUICK, "--json", **module_store).stdout.splitlines()[-1])
    return weights(module_store, said["run_id"])


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.rounds(full=7, short=1)
def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    module_store: dict[str, str], undisturbed: Any, victim: str, seed: int
) -> None:
    chance = random.Random(f"{victim} {seed}")
    before = set(runs(module_store))
    with started(*QUICK, wait_for=f"epoch {chance.randint(1, EPOCHS - 1)}/{EPOCHS}", **module_store) as process:
        time.sleep(chance.uniform(0, 2))
        children = descendants(process)
        killed = kill(process, victim)
        process.communicate(timeout=200)
    [run] = set(runs(module_store)) - before
    print(f"seed {seed}: {victim} {killed} killed, exit code {process.returncode}")
    if victim == "worker":
        assert process.returncode == 0
    if process.returncode != 0:
        assert fmnist("train", "--resume", run, **module_store).returncode == 0
    assert weights(module_store, run) == pytest.approx(undisturbed, abs=1e-6)
    # Ray's agents try for a minute to tell the head, which is gone, that the raylet is gone.
    assert wait_until_gone(children, 90) == []
    assert processes_of(Path(module_store["FMNIST_STATE_DIR"]).parent) == []


def kill(process: Any, victim: str) -> int:
    chosen = process
    if victim != "command":
        found = []
        for child in descendants(process):
            with suppress(psutil.Error):  # one that ended meanwhile
                found += [child] if VICTIMS[victim] in " ".join(child.cmdline()) else []
        assert found, f"no {VICTIMS[victim]} is running"
        chosen = found[0]
    chosen.kill()
    return int(chosen.pid)


def runs(place: dict[str, str]) -> list[str]:
    return [folder.name for folder in Path(place["FMNIST_STORE"], "runs").glob("*")]


def weights(place: dict[str, str], run_id: str) -> Any:
    from safetensors.numpy import load_file

    state = load_file(f"{place['FMNIST_STORE']}/runs/{run_id}/checkpoints/epoch-{EPOCHS:04d}/model.safetensors")
    return np.concatenate([state[name].ravel() for name in sorted(state)])
