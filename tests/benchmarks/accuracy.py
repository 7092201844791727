"""Measure the presets' accuracy on the test images over several seeds, and what each part of the recipe adds.

    python -m tests.benchmarks.accuracy [--preset full] [--seeds 5] [--ablation] [--weight-averaging 0.997]
                                        [--processes 2] [--idx FOLDER]

This benchmark uses `fmnist_model` alone. On a GPU, runs follow one another. On CPUs, each run uses one thread, and
there are as many runs at once as CPUs.

--ablation compares recipes that differ from the preset in one setting. It compares them on the validation images, so
the test images never influence a choice. --weight-averaging trains the preset with another averaging share. `full` had
such a share until its ablation showed that it does not need one. --idx names a folder with the data set's four IDX
files. With it, you need only PyTorch, NumPy and Arrow. The results are added to tests/benchmarks/results/accuracy.json.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from fmnist_model.dataset import LabelledImages, hold_out, validate
from fmnist_model.evaluation.evaluate import evaluate
from fmnist_model.images.idx import read_fashion_mnist
from fmnist_model.network import best_device
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import PRESETS, TrainingRecipe

RESULTS = Path(__file__).parent / "results" / "accuracy.json"

ABLATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no mirroring": {"flip": False},
    "no shift": {"shift_pixels": 0},
    "shift by up to 2 pixels": {"shift_pixels": 2},
    "no averaging of the weights": {"weight_averaging": 0.0},
    "label smoothing 0.05": {"label_smoothing": 0.05},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 0.05": {"weight_decay": 0.05},
    "weight decay 0.3": {"weight_decay": 0.3},
    "half the learning rate": {"learning_rate": 0.025},
    "a batch of 2,048": {"global_batch_size": 2048},
    "a third of the epochs": {"epochs": 20},
}


@cache
def fashion_mnist(folder: str | None) -> tuple[LabelledImages, LabelledImages]:
    """Load the training and the test images from IDX files, or from the store of the tests."""
    if folder is not None:
        arrays = read_fashion_mnist(Path(folder))
        return labelled(arrays, "train"), labelled(arrays, "t10k")
    from infra.settings import Settings
    from infra.storage.datasets import read_dataset
    from infra.storage.object_store import open_store
    from tasks.dataset import NAME, import_dataset
    from tasks.training.splits import load_split

    settings = Settings(store="var/test-data")
    store = open_store(settings.store)
    dataset = read_dataset(store, NAME) or import_dataset(store, settings)
    return load_split(store, dataset, "train"), load_split(store, dataset, "test")


def labelled(arrays: dict[str, Any], split: str) -> LabelledImages:
    """Load a split from the IDX files. Their arrays are read-only."""
    images, labels = arrays[f"{split}-images-idx3-ubyte"], arrays[f"{split}-labels-idx1-ubyte"]
    return validate(LabelledImages(images.copy(), labels), split)


def run(recipe: TrainingRecipe, folder: str | None) -> dict[str, float]:
    """Train a recipe and return its accuracy on the validation and the test images."""
    device = best_device()
    torch.set_num_threads(1)
    data, test = fashion_mnist(folder)
    training, validation = hold_out(data, recipe.validation_images)
    training_run = TrainingRun(recipe, training, device, validation=validation)
    epochs = list(training_run.epochs())
    tested = evaluate(training_run.network, test, device)
    return {
        "seed": recipe.seed,
        "validation_accuracy": epochs[-1].validation_accuracy or 0.0,
        "test_accuracy": tested.accuracy,
        "test_log_loss": tested.log_loss,
        "seconds": sum(epoch.seconds for epoch in epochs),
    }


def device_name() -> str:
    """Return the name of the device that the runs use."""
    return torch.cuda.get_device_name() if best_device().type == "cuda" else f"{os.cpu_count()} CPUs"


def run_all(recipes: list[TrainingRecipe], folder: str | None, processes: int) -> Iterator[dict[str, float]]:
    """Yield the outcome of each recipe."""
    if best_device().type == "cpu":
        with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
            yield from pool.imap(partial(run, folder=folder), recipes, chunksize=1)
    else:
        yield from (run(recipe, folder) for recipe in recipes)


def main() -> None:
    """Measure and add to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="full")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--weight-averaging", type=float)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--idx")
    arguments = parser.parse_args()

    preset = PRESETS[arguments.preset]
    if arguments.weight_averaging is not None:
        preset = replace(preset, weight_averaging=arguments.weight_averaging)
    changes = ABLATIONS if arguments.ablation else {"as it is": {}}
    seeds = range(arguments.seeds)
    recipes = [replace(preset, **change, seed=seed) for change in changes.values() for seed in seeds]
    outcomes = []
    for outcome in run_all(recipes, arguments.idx, arguments.processes):
        outcomes.append(outcome)
        print(json.dumps(outcome), flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    date = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(),
        "weight_averaging": preset.weight_averaging,
    }
    if arguments.ablation:
        by_change = {}
        for number, name in enumerate(changes):
            some = outcomes[number * len(seeds) : (number + 1) * len(seeds)]
            accuracies = [outcome["validation_accuracy"] for outcome in some]
            by_change[name] = {"mean": round(statistics.mean(accuracies), 5)}
            if len(accuracies) > 1:
                by_change[name]["standard_error"] = round(statistics.stdev(accuracies) / len(accuracies) ** 0.5, 5)
        results[f"{arguments.preset}, ablation"] = date | {"seeds": len(seeds), "validation_accuracy": by_change}
    else:
        accuracies = [outcome["test_accuracy"] for outcome in outcomes]
        results[arguments.preset if best_device().type == "cuda" else f"{arguments.preset}, CPU"] = date | {
            "mean": round(statistics.mean(accuracies), 5),
            "standard_deviation": round(statistics.stdev(accuracies), 5),
            "runs": outcomes,
        }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
