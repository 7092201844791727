"""What the presets reach on the test images, over seeds, and what each part of the recipe is worth.

    python -m tests.benchmarks.accuracy [--preset full] [--seeds 5] [--ablation] [--processes 2]

`fmnist_model` alone, one thread a run, as many runs at once as there are CPUs. With --ablation, recipes that differ
from the preset in one thing are compared on the validation images; the test images choose nothing. Adds to
tests/benchmarks/results/accuracy.json.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmnist_model.recipe import PRESETS, TrainingRecipe

RESULTS = Path(__file__).parent / "results" / "accuracy.json"

ABLATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no mirroring": {"flip": False},
    "no shift": {"shift_pixels": 0},
    "shift by up to 2 pixels": {"shift_pixels": 2},
    "no averaging of the weights": {"weight_averaging": 0.0},
    "label smoothing 0.05": {"label_smoothing": 0.05},
    "no weight decay": {"weight_decay": 0.0},
    "half the learning rate": {"learning_rate": 0.025},
    "a third of the epochs": {"epochs": 20},
}


def run(recipe: TrainingRecipe) -> dict[str, float]:
    """Train by a recipe on one thread; accuracies on the validation and the test images."""
    import torch

    from fmnist_model.dataset import hold_out
    from fmnist_model.evaluation import evaluate
    from fmnist_model.training import TrainingRun
    from infra.datasets import read_dataset
    from infra.object_store import open_store
    from infra.settings import Settings
    from tasks.dataset import NAME, import_dataset
    from tasks.splits import load_split

    torch.set_num_threads(1)
    settings = Settings(store="var/test-data")
    store = open_store(settings.store)
    dataset = read_dataset(store, NAME) or import_dataset(store, settings)
    training, validation = hold_out(load_split(store, dataset, "train"), recipe.validation_images)
    cpu = torch.device("cpu")
    training_run = TrainingRun(recipe, training, cpu, validation=validation)
    epochs = list(training_run.epochs())
    tested = evaluate(training_run.network, load_split(store, dataset, "test"), cpu)
    return {
        "seed": recipe.seed,
        "validation_accuracy": epochs[-1].validation_accuracy or 0.0,
        "test_accuracy": tested.accuracy,
        "test_log_loss": tested.log_loss,
        "seconds": sum(epoch.seconds for epoch in epochs),
    }


def main() -> None:
    """Measure, and add to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="full")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    preset = PRESETS[arguments.preset]
    changes = ABLATIONS if arguments.ablation else {"as it is": {}}
    seeds = range(arguments.seeds)
    recipes = [replace(preset, **change, seed=seed) for change in changes.values() for seed in seeds]
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
        outcomes = []
        for outcome in pool.imap(run, recipes, chunksize=1):
            outcomes.append(outcome)
            print(json.dumps(outcome), flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    date = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count()}
    if arguments.ablation:
        by_change = {}
        for number, name in enumerate(changes):
            some = outcomes[number * len(seeds) : (number + 1) * len(seeds)]
            by_change[name] = round(statistics.mean(outcome["validation_accuracy"] for outcome in some), 4)
        results[f"{arguments.preset}, ablation"] = date | {"seeds": len(seeds), "validation_accuracy": by_change}
    else:
        accuracies = [outcome["test_accuracy"] for outcome in outcomes]
        results[arguments.preset] = date | {
            "mean": round(statistics.mean(accuracies), 5),
            "standard_deviation": round(statistics.stdev(accuracies), 5),
            "runs": outcomes,
        }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
