"""Measure the stages of the main job: installation, start of Ray and Prefect, training, and classification.

    python -m tests.benchmarks.main_job [--runs 3] [--install]

Each run is the whole of `make run` in a new process with a new store. The first run imports the data set and migrates
Prefect's database, as on a fresh machine. With --install, `make install` is first timed in a copy of the checkout. The
results are written to tests/benchmarks/results/main_job.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results" / "main_job.json"


def run_main_job(folder: Path) -> dict[str, Any]:
    """Run the main job once. Return the seconds of the process and its stages, accuracy, and images per second."""
    environment = os.environ | {"FMNIST_STORE": str(folder / "store"), "FMNIST_STATE_DIR": str(folder / "state")}
    began = time.perf_counter()
    result = subprocess.run(
        [Path(sys.executable).parent / "fmnist", "run", "--preset", "quick", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    figures = json.loads(result.stdout.splitlines()[-1])
    return {
        "seconds": round(seconds, 2),
        "timeline": figures["timeline"],
        "test_accuracy": figures["training"]["test_accuracy"],
        "training_images_per_second": figures["training"]["images_per_second"],
        "classification_images_per_second": figures["classification"]["images_per_second"],
    }


def time_installation() -> float:
    """Return the seconds of `make install` in a copy of the tracked files, with the package cache as it is."""
    with tempfile.TemporaryDirectory() as folder:
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in files.decode().split("\0")[:-1]:
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        began = time.perf_counter()
        subprocess.run(["make", "install"], cwd=folder, check=True, capture_output=True)
        return round(time.perf_counter() - began, 2)


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the runs' seconds by stage."""
    stages = {stage for run in runs for stage in run["timeline"]}
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "timeline": {
            stage: statistics.median(run["timeline"].get(stage, 0.0) for run in runs) for stage in sorted(stages)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs after the first one")
    parser.add_argument("--install", action="store_true", help="time the installation too")
    arguments = parser.parse_args()

    results: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count()}
    if arguments.install:
        results["install_seconds"] = time_installation()
    with tempfile.TemporaryDirectory() as folder:
        results["first_run"] = run_main_job(Path(folder))
        results["later_runs"] = [run_main_job(Path(folder)) for _ in range(arguments.runs)]
    results["median_of_later_runs"] = median_of(results["later_runs"])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
