"""Measure what one checkpoint per epoch costs training, in a folder and on S3.

    eval "$(make -s s3-up)"
    python -m tests.benchmarks.checkpoint_cost [--blocks 40] [--preset quick]

Two processes on two CPUs train the preset `full`, unless you name another. Rank 0 writes checkpoints as a worker of
`fmnist train` does. After each epoch, a checkpoint goes to a folder, to S3, or nowhere. The order is drawn at random
for each block of three epochs. The cost of a checkpoint shows in the epoch during which it is written. A machine that
is slower for a while therefore slows down all three. Before the measurement, as many bytes are written to S3 and
deleted as the runs will write. The gateway's memory is then that of a gateway that has run for a while.

The benchmark also reports the CPU time of a checkpoint on S3 while nothing trains, for the worker and for Ceph's
processes. This time hardly varies. The results become `checkpoints`, by preset, in
tests/benchmarks/results/training.json.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from fmnist_model.dataset import LabelledImages, hold_out
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import PRESETS
from infra.cluster.local_ray import ENVIRONMENT
from infra.settings import Settings
from infra.storage.datasets import read_dataset
from infra.storage.object_store import open_store
from tasks.dataset import NAME, import_dataset
from tasks.training.recorder import CheckpointWriter
from tasks.training.run import RunToTrain
from tasks.training.splits import load_split
from tests.benchmarks.classification import last_json
from tests.benchmarks.training import RESULTS

PLACES = ("nowhere", "folder", "s3")
GATEWAY = Path(__file__).parent.parent.parent / "var" / "ceph"
"""Folder in which `make s3-up` keeps its files."""
_CHECKPOINT_BYTES = 8_100_000
_CHECKPOINTS = 50
"""Number of checkpoints whose CPU time is measured."""
_DELETED_AFTER_SECONDS = 125
"""Sum of `rgw gc obj min wait` and `rgw gc processor period` in infra/dev/ceph/gateway.py, in seconds."""


def train(rank: int, preset: str, blocks: int, folder: str) -> None:
    """Train in one process. Rank 0 writes checkpoints and prints the seconds from each one to the next."""
    torch.set_num_threads(1)
    settings = Settings(store="var/test-data")
    store = open_store(settings.store)
    dataset = read_dataset(store, NAME) or import_dataset(store, settings)
    recipe = replace(PRESETS[preset], epochs=len(PLACES) * blocks + 2)
    training, validation = hold_out(load_split(store, dataset, "train"), recipe.validation_images)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run = TrainingRun(recipe, training, torch.device("cpu"), dist.group.WORLD, validation=validation)
    with ExitStack() as stack:
        places = {}
        if rank == 0:
            for place, root in (("folder", f"file://{folder}/store"), ("s3", "s3://fmnist")):
                places[place] = stack.enter_context(open_writer(root, dataset.version))
        seconds = timed(run, places, blocks)
    if rank == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


def open_writer(root: str, data_version: str) -> CheckpointWriter:
    """Open a worker's checkpoint writer on a folder that only this process uses."""
    run = RunToTrain(id="checkpoint-cost", recipe=PRESETS["full"])
    return CheckpointWriter(open_store(f"{root}/{run.id}-{os.getpid()}"), run, data_version)


def timed(run: TrainingRun, places: dict[str, Any], blocks: int) -> dict[str, list[float]]:
    """Return the seconds of the epochs during which a checkpoint was written, by its destination."""
    draw = random.Random(0)  # noqa: S311
    seconds: dict[str, list[float]] = {place: [] for place in PLACES}
    epochs = run.epochs()
    next(epochs)  # the first epoch is slower than the others
    done = next(epochs)
    for place in [place for _ in range(blocks) for place in draw.sample(PLACES, len(PLACES))]:
        began = time.perf_counter()
        if place in places:
            places[place].write(run, done)
        done = next(epochs)
        if place in places:
            places[place].wait()
        seconds[place].append(round(time.perf_counter() - began, 4))
    return seconds


def cost(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians, and how much longer an epoch with a checkpoint takes, as a share of one without, per block."""
    found: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "epoch_seconds": {place: round(statistics.median(of), 3) for place, of in seconds.items()},
    }
    for place in PLACES[1:]:
        shares = [with_one / without - 1 for with_one, without in zip(seconds[place], seconds["nowhere"], strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4)
        found[f"{place}_costs"] = round(middle, 3)
        found[f"{place}_costs_quartiles"] = [round(low, 3), round(high, 3)]
    return found


def cpu_milliseconds(preset: str) -> dict[str, float]:
    """Return the CPU time of a checkpoint on S3 by process, and its bytes. It holds an untrained network."""
    images = LabelledImages(np.zeros((640, 28, 28), np.uint8), np.arange(640) % 10)
    recipe = replace(PRESETS[preset], epochs=1, global_batch_size=64, learning_rate=1e-6)
    run = TrainingRun(recipe, images, torch.device("cpu"))
    [done] = run.epochs()
    with open_writer("s3://fmnist", "none") as writer:
        for number in range(_CHECKPOINTS + 1):
            if number == 1:  # the first one opens the connection
                before = cpu_seconds()
            writer.write(run, replace(done, epoch=number))
            writer.wait()
        spent = {name: seconds - before[name] for name, seconds in cpu_seconds().items()}
        stored = list(writer._store.list(""))
        for stat in stored:
            writer._store.delete(stat.key)
    size = sum(stat.size for stat in stored) / (_CHECKPOINTS + 1)
    return {"bytes": round(size)} | {name: round(1000 * of / _CHECKPOINTS, 1) for name, of in spent.items()}


def cpu_seconds() -> dict[str, float]:
    """Return the user and system time of this process and of Ceph's. Ceph's is to a hundredth: proc_pid_stat(5)."""
    found = {"worker": time.process_time()}
    for path in (GATEWAY / "pids").iterdir():
        fields = Path(f"/proc/{path.read_text()}/stat").read_text().rpartition(")")[2].split()
        found[path.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def fill_and_empty(blocks: int) -> None:
    """Make the gateway use the memory that it will need. It frees deleted objects within two minutes."""
    store = open_store(f"s3://fmnist/fill-{os.getpid()}")
    data = os.urandom(2 * _CHECKPOINT_BYTES)
    for number in range(blocks):
        store.create(f"{number}", data)
    for number in range(blocks):
        store.delete(f"{number}")
    time.sleep(_DELETED_AFTER_SECONDS)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        torch.multiprocessing.spawn(train, (arguments.preset, arguments.blocks, arguments.worker), nprocs=2)
        return
    fill_and_empty(arguments.blocks)
    with tempfile.TemporaryDirectory() as folder:
        program = ("tests.benchmarks.checkpoint_cost", "--worker", folder)
        options = ("--preset", arguments.preset, "--blocks", str(arguments.blocks))
        found = {arguments.preset: cost(last_json(*program, *options, **ENVIRONMENT))}
    found[arguments.preset]["cpu_milliseconds"] = cpu_milliseconds(arguments.preset)
    print(json.dumps(found), flush=True)
    results = json.loads(RESULTS.read_text())
    results["checkpoints"] = results.get("checkpoints", {}) | found
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
