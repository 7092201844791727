"""Measure how long training takes on one GPU, from random weights to a mean of 90 % test accuracy.

    python -m tests.benchmarks.speed_run [--seeds 10] [--idx FOLDER]

The method follows airbench for CIFAR-10 (https://github.com/KellerJordan/cifar10-airbench). The recipe is fixed. The
loop is timed from the seeded random weights until the last step is done. The result is the mean over the runs, and
their mean accuracy must reach the target. The preset `quick` is such a recipe, and `full` is also timed. The timed part
is `TrainingRun.epochs`, including the validation of each epoch. The images are already on the device. The results list
two costs separately: recording the CUDA graph of a step in advance, and the first use of the GPU in the process.

PyTorch's profiler measures the share of matrix work in a separate run. It reports the seconds of the kernels that
multiply matrices, of all kernels, and of the loop. --idx names a folder with the data set's four IDX files. With it,
you need only PyTorch, NumPy and Arrow. The results are written to tests/benchmarks/results/speed_run.json.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fmnist_model.dataset import LabelledImages, hold_out
from fmnist_model.evaluation.evaluate import evaluate
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import PRESETS, TrainingRecipe
from tests.benchmarks.accuracy import fashion_mnist

RESULTS = Path(__file__).parent / "results" / "speed_run.json"
TARGET = 0.90
GPU = torch.device("cuda")
_MATRIX_KERNELS = ("gemm", "nvjet", "cutlass", "xmma")
"""Parts of the names of cuBLAS kernels."""


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the seconds until all work that the block starts on the GPU is done."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    yield
    torch.cuda.synchronize()
    seconds.append(time.perf_counter() - began)


def measure(recipe: TrainingRecipe, seeds: int, folder: str | None, *, cuda_graph: bool = True) -> dict[str, Any]:
    """Train a recipe from each seed."""
    data, test = fashion_mnist(folder)
    training, validation = hold_out(data, recipe.validation_images)
    prepared: list[float] = []
    seconds: list[float] = []
    accuracies = []
    for seed in range(seeds):
        run = TrainingRun(replace(recipe, seed=seed), training, GPU, validation=validation, cuda_graph=cuda_graph)
        with timed(prepared):
            run.prepare()
        with timed(seconds):
            for _ in run.epochs():
                pass
        accuracies.append(evaluate(run.network, test, GPU).accuracy)
    mean = statistics.mean(accuracies)
    return {
        "recipe": asdict(recipe),
        "seeds": seeds,
        "accuracy": {"mean": mean, "standard_deviation": statistics.stdev(accuracies), "of_seeds": accuracies},
        "reached": mean >= TARGET,
        "seconds": {"mean": statistics.mean(seconds), "median": statistics.median(seconds), "of_seeds": seconds},
        "recording_seconds": {"first": prepared[0], "median": statistics.median(prepared)},
        "steps": recipe.epochs * run.steps_per_epoch,
    }


def matrix_work(recipe: TrainingRecipe, folder: str | None, loop_seconds: float) -> dict[str, Any]:
    """Profile a run by kind of kernel. The profiler slows down the loop, but not the kernels."""
    training, validation = hold_out(fashion_mnist(folder)[0], recipe.validation_images)
    run = TrainingRun(recipe, training, GPU, validation=validation)
    run.prepare()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        list(run.epochs())
        torch.cuda.synchronize()
    kernels: Counter[str] = Counter()
    for event in profiler.key_averages():
        kernels[event.key] += event.self_device_time_total / 1e6
    matrices = sum(seconds for name, seconds in kernels.items() if any(of in name for of in _MATRIX_KERNELS))
    return {
        "kernel_seconds": kernels.total(),
        "matrix_seconds": matrices,
        "of_kernels": matrices / kernels.total(),
        "of_loop": matrices / loop_seconds,
        "longest": [f"{seconds:.5f} {name[:160]}" for name, seconds in kernels.most_common(12)],
    }


def use_gpu(data: LabelledImages) -> float:
    """Return the seconds of a first matrix product on a GPU that the process has not used before."""
    began = time.perf_counter()
    images = torch.from_numpy(data.images[:1024]).to(GPU).flatten(1).float()
    (images @ images.T).sum().item()
    return time.perf_counter() - began


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--idx")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds: at least 2, to tell how far they are apart.")
    found: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "context_seconds": use_gpu(fashion_mnist(arguments.idx)[0]),
    }
    for name in ("quick", "full"):
        recipe = PRESETS[name]
        found[name] = measure(recipe, arguments.seeds, arguments.idx)
        plain = measure(recipe, min(arguments.seeds, 3), arguments.idx, cuda_graph=False)
        found[name]["without_graph"] = {key: plain[key] for key in ("seconds", "accuracy")}
        found[name]["matrix_work"] = matrix_work(recipe, arguments.idx, found[name]["seconds"]["median"])
        print(json.dumps({name: found[name]}))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
