"""Train with `fmnist_model` alone, in one process or in several that form a process group.

The loop uses no orchestrator, writes no checkpoints and reports no progress. The module prints one line of JSON.

    python -m tests.benchmarks.peers.bare_training [--processes 1] [--threads 2] [--preset quick] [--epochs 6]
"""

import argparse
import json
import tempfile
from dataclasses import replace
from itertools import islice

import torch
import torch.distributed as dist
import torch.multiprocessing

from fmnist_model.dataset import hold_out
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import PRESETS
from infra.settings import Settings
from infra.storage.datasets import read_dataset
from infra.storage.object_store import open_store
from tasks.dataset import NAME, import_dataset
from tasks.training.splits import load_split


def train(rank: int, arguments: argparse.Namespace, rendezvous: str) -> None:
    """Train in one process. Rank 0 prints the result."""
    torch.set_num_threads(arguments.threads)
    settings = Settings(store="var/test-data")
    store = open_store(settings.store)
    dataset = read_dataset(store, NAME) or import_dataset(store, settings)
    recipe = replace(PRESETS[arguments.preset], seed=arguments.seed)
    training, validation = hold_out(load_split(store, dataset, "train"), recipe.validation_images)
    if arguments.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=arguments.processes)
    group = dist.group.WORLD if arguments.processes > 1 else None
    run = TrainingRun(recipe, training, torch.device("cpu"), group, validation=validation)
    epochs = list(islice(run.epochs(), arguments.epochs))
    if rank == 0:
        images, seconds = sum(epoch.images for epoch in epochs), sum(epoch.seconds for epoch in epochs)
        print(json.dumps({"images": images, "seconds": seconds, "images_per_second": images / seconds}))
    if arguments.processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (arguments, f"{folder}/rendezvous"), nprocs=arguments.processes)
