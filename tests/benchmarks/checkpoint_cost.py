"""What a checkpoint an epoch costs training: in a folder, and on S3.

    eval "$(make -s s3-up)"
    python -m tests.benchmarks.checkpoint_cost [--blocks 40] [--preset quick]

Two processes on two CPUs train, by the preset `full` where no other is named, and rank 0 writes checkpoints as a worker
of `fmnist train` does. After an epoch a checkpoint goes into a folder, to S3, or nowhere, in an order drawn anew for
each block of three epochs; what it costs is seen in the epoch during which it is written. So a machine that is slower
for a while slows down all three. Before, as much is written to S3 as will be, and deleted, so that the gateway's memory
is that of one that has run for a while. Writes `checkpoints`, by preset, of tests/benchmarks/results/training.json.
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
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from fmnist_model.dataset import hold_out
from fmnist_model.recipe import PRESETS
from fmnist_model.training import TrainingRun
from infra.datasets import read_dataset
from infra.object_store import open_store
from infra.ray_cluster import ON_THIS_MACHINE
from infra.settings import Settings
from tasks.dataset import NAME, import_dataset
from tasks.splits import load_split
from tasks.training_run import RunToTrain
from tasks.training_worker import _CheckpointWriter
from tests.benchmarks.classification import last_json
from tests.benchmarks.training import RESULTS

PLACES = ("nowhere", "folder", "s3")
_CHECKPOINT_BYTES = 8_100_000
_DELETED_AFTER_SECONDS = 125
"""`rgw gc obj min wait` and `rgw gc processor period` of infra/ceph/gateway.py, together."""


def train(rank: int, preset: str, blocks: int, folder: str) -> None:
    """What each process does; rank 0 writes checkpoints, and the seconds from each to the next."""
    torch.set_num_threads(1)
    settings = Settings(store="var/test-data")
    store = open_store(settings.store)
    dataset = read_dataset(store, NAME) or import_dataset(store, settings)
    recipe = replace(PRESETS[preset], epochs=len(PLACES) * blocks + 2)
    training, validation = hold_out(load_split(store, dataset, "train"), recipe.validation_images)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run = TrainingRun(recipe, training, torch.device("cpu"), dist.group.WORLD, validation=validation)
    with ExitStack() as stack:
        places = open_places(stack, folder, dataset.version) if rank == 0 else {}
        seconds = timed(run, places, blocks)
    if rank == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


def open_places(stack: ExitStack, folder: str, data_version: str) -> dict[str, Any]:
    """What writes checkpoints into a folder, and to S3."""
    name = f"checkpoint-cost-{os.getpid()}"
    config = {"run": RunToTrain(id=name, recipe={}), "data_version": data_version}
    stores = {"folder": open_store(f"file://{folder}/store"), "s3": open_store(f"s3://fmnist/{name}")}
    return {place: stack.enter_context(_CheckpointWriter(store, config)) for place, store in stores.items()}


def timed(run: TrainingRun, places: dict[str, Any], blocks: int) -> dict[str, list[float]]:
    """Seconds of the epochs during which a checkpoint was written, by the place it was written to."""
    draw = random.Random(0)  # noqa: S311
    seconds: dict[str, list[float]] = {place: [] for place in PLACES}
    epochs = run.epochs()
    next(epochs)  # slower than others
    done = next(epochs)
    for place in [place for _ in range(blocks) for place in draw.sample(PLACES, len(PLACES))]:
        began = time.perf_counter()
        if place in places:
            places[place].write(run, done)
        done = next(epochs)
        if place in places:
            places[place]._wait()
        seconds[place].append(round(time.perf_counter() - began, 4))
    return seconds


def cost(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and by what share of an epoch without a checkpoint those with one are longer, block by block."""
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


def fill_and_empty(blocks: int) -> None:
    """Have the gateway use the memory that it will need; it frees what was deleted within two minutes."""
    store = open_store(f"s3://fmnist/fill-{os.getpid()}")
    data = os.urandom(2 * _CHECKPOINT_BYTES)
    for number in range(blocks):
        store.create(f"{number}", data)
    for number in range(blocks):
        store.delete(f"{number}")
    time.sleep(_DELETED_AFTER_SECONDS)


def main() -> None:
    """Measure, and write."""
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
        found = {arguments.preset: cost(last_json(*program, *options, **ON_THIS_MACHINE))}
    print(json.dumps(found), flush=True)
    results = json.loads(RESULTS.read_text())
    results["checkpoints"] = results.get("checkpoints", {}) | found
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
