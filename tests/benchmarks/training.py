"""Compare training with Ray's own example and with a bare `fmnist_model` loop, and measure the cost of a kill.

    python -m tests.benchmarks.training [--runs 3] [--without-example]

Training uses two workers on two CPUs. Each run is a separate process, and the compared programs take turns. All values
are medians. The results are written to tests/benchmarks/results/training.json.

`images_per_second` covers the epochs of all processes together, including validation. `loop` also includes the time
that checkpoints add, until the last one is complete.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.classification import last_json

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results" / "training.json"
EPOCHS = "12"
"""Epochs of the preset `full` for throughput measurements."""
TARGET = 0.87
"""Test accuracy up to which the time is compared with that of Ray's example."""


def train(store: str, state: str, *options: str) -> dict[str, Any]:
    """Run `fmnist train` and read its checkpoints."""
    settings = {"FMNIST_STORE": store, "FMNIST_STATE_DIR": state}
    command = ["train", *options, "--workers", "2", "--keep-best", "100", "--json"]
    found = subprocess.run(
        [Path(sys.executable).parent / "fmnist", *command],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return figures | epochs_of(store, figures["run_id"])


def epochs_of(store_root: str, run_id: str) -> dict[str, Any]:
    """Return the test accuracy of each epoch's checkpoint, and the seconds of the epochs up to the target."""
    import torch

    from fmnist_model.evaluation.evaluate import evaluate
    from fmnist_model.network import load_weights
    from infra.settings import Settings
    from infra.storage.checkpoints import WEIGHTS, list_checkpoints, read_file, read_record
    from infra.storage.datasets import read_dataset
    from infra.storage.object_store import open_store
    from tasks.dataset import NAME
    from tasks.training.splits import load_split

    store = open_store(Settings(store=store_root).store)
    dataset = read_dataset(store, NAME)
    assert dataset is not None
    test = load_split(store, dataset, "test")
    accuracies, seconds = [], []
    for epoch in list_checkpoints(store, run_id):
        record = read_record(store, run_id, epoch)
        network = load_weights(read_file(store, record, WEIGHTS), run_id)
        accuracies.append(evaluate(network, test, torch.device("cpu")).accuracy)
        seconds.append(record.metrics["seconds"])
    reached = next((number for number, accuracy in enumerate(accuracies, 1) if accuracy >= TARGET), None)
    return {
        "accuracies": accuracies,
        "epoch_seconds": sum(seconds),
        "seconds_to_target": sum(seconds[:reached]) if reached else None,
    }


def kill_a_worker() -> None:
    """Kill a worker during training, and print the seconds until training passes its last step."""
    import psutil

    from flows.cli.services import prepare_environment, services

    prepare_environment()
    from flows.parameters import RecipeParameters, TrainParameters
    from infra.cluster.progress_board import ProgressBoard
    from infra.settings import load_settings

    noted: list[tuple[float, int]] = []
    workers: dict[int, float] = {}
    ended = threading.Event()

    def train_workers() -> list[Any]:
        found = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # the process may have ended
                found += [child] if "RayTrainWorker" in " ".join(child.cmdline()) else []
        return found

    def watch() -> None:
        board, killed = ProgressBoard(), False
        while not ended.wait(0.05):
            entry = board.read()
            if entry.get("stage") == "train" and (not noted or noted[-1][1] != entry["step"]):
                noted.append((time.perf_counter(), entry["step"]))
            for worker in train_workers() if killed or (noted and noted[-1][1] > 250) else []:
                if not killed:
                    worker.kill()
                    killed = True
                    times["kill"], times["step"] = time.perf_counter(), noted[-1][1]
                    workers.update((one.pid, 0.0) for one in train_workers())
                elif worker.pid not in workers:
                    workers[worker.pid] = time.perf_counter()

    times: dict[str, float] = {}
    with services(load_settings()):
        from flows.train import train as train_flow

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            train_flow(TrainParameters(preset="quick", workers="2", recipe=RecipeParameters(epochs=12)))
        finally:
            ended.set()
            watcher.join()
    kill = times["kill"]
    new_workers = min(at for at in workers.values() if at > kill)
    after = [(at, step) for at, step in noted if at > new_workers]
    beyond = next(at for at, step in after if step > times["step"])
    print(
        json.dumps(
            {
                "seconds": beyond - kill,
                "until_new_workers": new_workers - kill,
                "until_their_first_steps": after[0][0] - new_workers,
                "until_beyond_the_last_step": beyond - after[0][0],
            }
        )
    )


def example_folder(folder: Path) -> Path:
    """Create a home folder with the data set where Ray's example looks for it."""
    from infra.settings import Settings
    from tasks.dataset import source_files

    raw = folder / "home" / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    with source_files(Settings()) as (source, _):
        for file in source.glob("*ubyte*"):
            shutil.copy(file, raw)
            subprocess.run(["gzip", "-dkf", raw / file.name], check=True) if file.suffix == ".gz" else None
    return folder / "home"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--without-example", action="store_true")
    parser.add_argument("--killed", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.killed:
        kill_a_worker()
        return

    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(arguments.runs):
            run: dict[str, Any] = {}
            if not arguments.without_example and number == 0:
                home = str(example_folder(folder))
                run["example"] = last_json("tests.benchmarks.peers.ray_train", "--epochs", "20", HOME=home)
                print(json.dumps(run), flush=True)
            bare = ("tests.benchmarks.peers.bare_training", "--preset", "full", "--epochs", EPOCHS)
            run["one_process"] = last_json(*bare, "--threads", "2")
            run["two_processes"] = last_json(*bare, "--processes", "2", "--threads", "1")
            run["ours"] = train(f"{folder}/store", f"{folder}/state", "--preset", "full", "--epochs", EPOCHS)
            run["quick"] = train(f"{folder}/store", f"{folder}/state", "--preset", "quick")
            killed = {"FMNIST_STORE": f"{folder}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
            run["killed"] = last_json("tests.benchmarks.training", "--killed", **killed)
            print(json.dumps(run), flush=True)
            runs.append(run)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result = summarize(runs) | {name: before[name] for name in ("checkpoints",) if name in before}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the runs and of their ratios."""

    def median(values: Any) -> float:
        return round(statistics.median(values), 3)

    def speed(run: dict[str, Any]) -> float:
        return float(run["images_per_second"])

    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpus": os.cpu_count(),
        "images_per_second": {
            name: round(statistics.median(speed(run[name]) for run in runs))
            for name in ("one_process", "two_processes", "ours", "quick")
        },
        "to_one_process": median(speed(run["ours"]) / speed(run["one_process"]) for run in runs),
        "to_two_processes": median(speed(run["ours"]) / speed(run["two_processes"]) for run in runs),
        "seconds_to_target": median(run["quick"]["seconds_to_target"] for run in runs),
        "killed": {name: median(run["killed"][name] for run in runs) for name in runs[0]["killed"]},
    }
    for run in runs:
        if "example" in run:
            result["example"] = run["example"]
            result["times_faster_to_target"] = round(run["example"]["loop_seconds"] / result["seconds_to_target"], 1)
            result["times_as_many_images"] = round(
                result["images_per_second"]["ours"] / run["example"]["images_per_second"], 1
            )
    return result


if __name__ == "__main__":
    main()
