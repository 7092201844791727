"""Train on Fashion-MNIST exactly as Ray's own example does: batch 32, SGD, a DataLoader.

The example is ray.train.examples.pytorch.torch_fashion_mnist_example, which Ray installs. It is unchanged and reads the
data set from ~/data/FashionMNIST/raw. The module prints one line of JSON: the example's test accuracy after each epoch,
and the mean seconds per epoch.

    HOME=FOLDER python -m tests.benchmarks.peers.ray_train [--workers 2] [--epochs 10] [--until 0.87]
"""

import argparse
import json
import time
from typing import Any

import ray
from ray.train import ControllerError, RunConfig, ScalingConfig, UserCallback
from ray.train.examples.pytorch.torch_fashion_mnist_example import train_func_per_worker
from ray.train.torch import TorchTrainer


class Reached(Exception):
    """Stop the run early because it reached the requested accuracy."""


@ray.remote(num_cpus=0)
class Notes:
    """End time and accuracy of each epoch."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, float]] = []

    def add(self, at: float, accuracy: float) -> None:
        self.reports.append((at, accuracy))

    def read(self) -> list[tuple[float, float]]:
        return self.reports


class Watch(UserCallback):
    """Record each report, and stop the run at the requested accuracy."""

    def __init__(self, notes: Any, until: float) -> None:
        self.notes, self.until = notes, until

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        accuracy = sum(worker["accuracy"] for worker in metrics) / len(metrics)
        ray.get(self.notes.add.remote(time.perf_counter(), accuracy))
        if accuracy >= self.until:
            raise Reached


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--until", type=float, default=0.87)
    arguments = parser.parse_args()

    ray.init(num_cpus=arguments.workers, log_to_driver=False)
    notes = Notes.remote()
    try:
        TorchTrainer(
            train_func_per_worker,
            train_loop_config={
                "lr": 1e-3,
                "epochs": arguments.epochs,
                "batch_size_per_worker": 32 // arguments.workers,
            },
            scaling_config=ScalingConfig(num_workers=arguments.workers),
            run_config=RunConfig(callbacks=[Watch(notes, arguments.until)]),
        ).fit()
    except ControllerError:  # Ray Train raises this for an exception in a callback
        if ray.get(notes.read.remote())[-1][1] < arguments.until:
            raise
    reports = ray.get(notes.read.remote())
    seconds = (reports[-1][0] - reports[0][0]) / (len(reports) - 1)
    print(
        json.dumps(
            {
                "accuracies": [round(accuracy, 4) for _, accuracy in reports],
                "epoch_seconds": seconds,
                "images_per_second": 60_000 / seconds,
                "loop_seconds": seconds * len(reports),
            }
        )
    )
