"""Measure what Prefect costs: seconds from "Run" to the first step or shard, and API calls.

    python -m tests.benchmarks.orchestration [--runs 3] [--only starts]

Starts: `fmnist serve` runs, and the benchmark creates runs through its API as the UI does. The times come from the
runs' logs. A bare flow starts training workers or actors and does nothing else (peers/bare_flows.py). The time of a
start minus that of the bare flow is this project's share.

Calls: the benchmark counts the requests that the server answers during a run of `classify`. The runs use the same files
of 9,000,000 raw-pixel images, cut into 10 and into 1,000 shards. The results are written to
tests/benchmarks/results/orchestration.json.
"""

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.benchmarks.classification import last_json, make_images, make_model
from tests.harness.s3_server import free_port

RESULTS = Path(__file__).parent / "results" / "orchestration.json"
IMAGES, FILE_IMAGES = 9_000_000, 9_000
SHARDS = {"10 shards": 900_000, "1,000 shards": 9_000}
"""Images per shard."""
_EVENT_SECONDS = 5
"""Seconds from a run's end until the server knows which run it triggers."""
STAGES = {
    "train": {
        "the worker takes the run": "submitting flow run",
        "its process imports and begins": "Beginning flow run",
        "Ray, data set, checks": "Starting 2 training workers",
        "training workers come up": "Rank 0 of 2 trains",
        "first step": "Training: epoch 1",
    },
    "classify": {
        "the worker takes the run": "submitting flow run",
        "its process imports and begins": "Beginning flow run",
        "Ray, plan": "Starting the classifiers",
        "classifiers come up, first shard": "[shard 0]",
    },
}
"""Words that mark the end of each stage by their first log line, by deployment."""


def starts(runs: int) -> dict[str, Any]:
    """Return the median seconds of each stage and of the whole start."""
    from tests.conftest import TEST_DATA
    from tests.harness.served import Served, serving, until

    def measure(served: Served, name: str, number: int) -> dict[str, float]:
        parameters = {"preset": "quick"} if name == "train" else {"table": f"table-{number}"}
        wait_until_idle(served)
        before = datetime.now(UTC)
        run = served.start(name, **parameters)
        last = list(STAGES[name].values())[-1]
        until(lambda: last in served.messages(run), 180)
        lines = served.logs(run)
        served.wait(run)
        times = {}
        for stage, words in STAGES[name].items():
            at = datetime.fromisoformat(next(line["timestamp"] for line in lines if words in line["message"]))
            times[stage] = (at - before).total_seconds() - sum(times.values())
        return times | {"all": sum(times.values())}

    def measure_bare(served: Served, name: str, folder: str) -> float:
        stamp = Path(folder) / f"stamp-{name}"
        stamp.unlink(missing_ok=True)
        before = time.time()
        served.wait(served.start(name, stamp=str(stamp)))
        return float(stamp.read_text()) - before

    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the bare flows, which are not installed
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), TEST_DATA.as_uri()) as served:
        served.wait(next(run["id"] for run in served.runs("train") if run["name"] == "first-model"))
        served.wait(until(lambda: served.runs("classify"), 60)[0]["id"])
        measured = {name: [measure(served, name, number) for number in range(runs)] for name in STAGES}
        bare = {}
        for name in STAGES:
            served.deploy(f"bare_{name}", f"tests.benchmarks.peers.bare_flows.bare_{name}")
            bare[name] = [measure_bare(served, f"bare_{name}", folder) for _ in range(runs)]
    figures = {
        name: {stage: round(statistics.median(times[stage] for times in some), 1) for stage in some[0]}
        for name, some in measured.items()
    }
    for name, seconds in bare.items():
        figures[name]["of it a bare flow's"] = round(statistics.median(seconds), 1)
        figures[name]["ours"] = round(figures[name]["all"] - figures[name]["of it a bare flow's"], 1)
    return figures


def wait_until_idle(served: Any) -> None:
    """Wait until no run is active. Each training makes a champion, which starts a `classify` run seconds later."""
    from tests.harness.served import FINAL, until

    time.sleep(_EVENT_SECONDS)
    until(lambda: all(run["state_name"] in FINAL for name in STAGES for run in served.runs(name)), 120)


def classify_counted(folder: str, images: str, shard_images: int) -> None:
    """Classify in this process, with a separate server that logs its requests, and print their number."""
    os.environ["PREFECT_SERVER_LOGGING_LEVEL"] = "INFO"
    from flows.cli.services import prepare_environment

    prepare_environment()
    from infra.orchestration.server import prefect_server
    from infra.settings import load_settings
    from infra.storage.tables.planning import plan

    plan.SMALLEST_SHARD = plan.LARGEST_SHARD = shard_images * (1 + 784 / 2048)
    state = Path(folder) / f"state-{shard_images}"
    with prefect_server(state, free_port()) as server:
        os.environ["PREFECT_API_URL"] = server.wait_until_healthy()
        from flows.classify import classify
        from flows.parameters import ClassifyParameters
        from infra.cluster.connection import ray_connection

        with ray_connection(load_settings()):
            summary = classify(ClassifyParameters(inputs=[images], table=f"table-{shard_images}"))
        requests = re.findall(r'"([A-Z]+) /api/([a-z_]+)', server.log.read_text())
    [books] = summary.batches
    kinds = Counter(f"{method} {path}" for method, path in requests if path != "health")
    figures = {"shards": books.shards, "seconds": round(books.seconds, 1), "calls": kinds.total(), "of": kinds}
    print(json.dumps(figures))


def calls() -> dict[str, Any]:
    """Count the API calls of the runs with few and with many shards."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(f"file://{folder}/store")
        make_images(Path(folder) / "one", 1, "pixels")
        table = pq.read_table(Path(folder) / "one")
        images = Path(folder) / "images"
        images.mkdir()
        rows = table.take(list(range(len(table))) * (FILE_IMAGES // len(table) + 1)).slice(0, FILE_IMAGES)
        for number in range(IMAGES // FILE_IMAGES):
            pq.write_table(rows, images / f"{number:04d}.parquet")
        for name, shard_images in SHARDS.items():
            command = ("--classify", folder, str(images), str(shard_images))
            settings = {"FMNIST_STORE": f"{folder}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
            figures[name] = last_json("tests.benchmarks.orchestration", *command, **settings)
            assert 0.8 < figures[name]["shards"] * shard_images / IMAGES < 1.2, figures[name]
    few, many = (figures[name]["calls"] for name in SHARDS)
    return figures | {"many_to_few": round(many / few, 3)}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("calls", "starts"), help="and keep the other's figures")
    parser.add_argument("--classify", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.classify:
        folder, images, shard_images = arguments.classify
        classify_counted(folder, images, int(shard_images))
        return
    result = json.loads(RESULTS.read_text()) if arguments.only else {}
    result |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count()}
    if arguments.only != "starts":
        result["calls"] = calls()
        print(json.dumps(result["calls"]), flush=True)
    if arguments.only != "calls":
        result["starts"] = starts(arguments.runs)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
