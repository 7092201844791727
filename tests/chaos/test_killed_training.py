"""Kill a process of `fmnist train` at a random moment, then resume the run if it didn't recover.

Afterwards its weights must be those of an undisturbed run, and none of its processes may be running.
"""

import json
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.harness.commands import descendants, fmnist, is_alive, processes_of, started, wait_until_gone

EPOCHS = 6
"""Epochs of the preset quick."""
QUICK = ("train", "--preset", "quick", "--workers", "2", "--keep-best", "0")
# Ray's agents keep trying for a minute to tell the lost head of the lost raylet. The command comes first, so that the
# other victims are killed meanwhile.
VICTIMS = {"command": "", "controller": "TrainController", "worker": "RayTrainWorker"}
"""Victims, by a part of the name that Ray gives to the process."""
END_SECONDS = 90


class Leftovers:
    """Waits in the background until the processes of killed runs end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._executor = ThreadPoolExecutor(max_workers=32)
        self.found: dict[str, Future[list[str]]] = {}
        """Processes that each run left."""

    def look_for(self, run: str, children: list[psutil.Process]) -> None:
        """Start to wait for the children of a run. Once they have ended, its orphans must have, too."""
        self.found[run] = self._executor.submit(self._wait, children, processes_of(self._folder))

    def _wait(self, children: list[psutil.Process], all_by_now: list[psutil.Process]) -> list[str]:
        left = wait_until_gone(children, END_SECONDS)
        return left + [f"{process.pid} orphaned" for process in all_by_now if is_alive(process)]


@pytest.fixture(scope="module")
def leftovers(module_store: dict[str, str]) -> Leftovers:
    return Leftovers(Path(module_store["FMNIST_STATE_DIR"]).parent)


@pytest.fixture(scope="module")
def undisturbed(module_store: dict[str, str]) -> Any:
    """Train without a kill, and return the weights."""
    summary = json.loads(fmnist(*QUICK, "--json", **module_store).stdout.splitlines()[-1])
    return weights(module_store, summary["run_id"])


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.rounds(full=7, short=1)
def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    module_store: dict[str, str], undisturbed: Any, leftovers: Leftovers, victim: str, seed: int
) -> None:
    chance = random.Random(f"{victim} {seed}")
    before = set(runs(module_store))
    with started(*QUICK, wait_for=f"epoch {chance.randint(1, EPOCHS - 1)}/{EPOCHS}", **module_store) as process:
        time.sleep(chance.uniform(0, 2))
        children = descendants(process)
        killed = kill(process, victim)
        process.communicate(timeout=800)
    [run] = set(runs(module_store)) - before
    print(f"seed {seed}: {victim} {killed} killed, exit code {process.returncode}")
    if victim == "worker":
        assert process.returncode == 0
    if process.returncode != 0:
        assert fmnist("train", "--resume", run, **module_store).returncode == 0
    leftovers.look_for(f"{victim} {seed}", children)
    assert weights(module_store, run) == pytest.approx(undisturbed, abs=1e-6)


def test_killed_runs_leave_no_process_running(leftovers: Leftovers) -> None:
    found = {run: left.result(END_SECONDS + 10) for run, left in leftovers.found.items()}
    assert not any(found.values()), found


def kill(process: Any, victim: str) -> int:
    chosen = process
    if victim != "command":
        found = []
        for child in descendants(process):
            with suppress(psutil.Error):  # it may have ended meanwhile
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
