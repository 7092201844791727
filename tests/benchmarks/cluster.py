"""Measure what distribution costs: the same work on one Ray node of two CPUs and on two nodes of one CPU.

    python -m tests.benchmarks.cluster [--runs 3]

The benchmark also measures the recovery from a node's death. The nodes are raylets on this machine that share only the
network and a folder (tests/harness/cluster.py). The recovery is measured with one actor and one spare node. It is the
time in seconds from SIGKILL of all the node's processes until the replacement completes the next shard. The results are
written to tests/benchmarks/results/cluster.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import Settings
from infra.storage.datasets import read_dataset
from infra.storage.object_store import open_store
from tasks.dataset import NAME, import_dataset
from tasks.training.splits import load_split
from tests.benchmarks.classification import make_model
from tests.harness.cluster import Cluster, ray_cluster
from tests.harness.commands import FMNIST, user_environment

RESULTS = Path(__file__).parent / "results" / "cluster.json"
LAYOUTS = {"one_node": (2,), "two_nodes": (1, 1)}
"""CPUs of each node, by layout."""
FILES, ROWS = 40, 30_000
EPOCHS = 12


def make_images(folder: Path) -> None:
    """Write Parquet files with PNGs of the training images."""
    from fmnist_model.images.decode import encode_png

    settings = Settings(store="var/test-data")
    store = open_store(settings.store)
    dataset = read_dataset(store, NAME) or import_dataset(store, settings)
    images = load_split(store, dataset, "train").images[:ROWS]
    table = pa.table({"image": [encode_png(image) for image in images]})
    folder.mkdir()
    for number in range(FILES):
        pq.write_table(table, folder / f"{number:02d}.parquet", row_group_size=10_000)


def figures(cluster: Cluster, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a command and return the measurements that it reports."""
    found = subprocess.run(
        [FMNIST, *arguments, "--json"], env=environment(cluster, folder), stdout=subprocess.PIPE, text=True, check=True
    )
    said: dict[str, Any] = json.loads(found.stdout)
    return said


def environment(cluster: Cluster, folder: Path) -> dict[str, str]:
    settings = {"FMNIST_STORE": f"file://{folder}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
    return user_environment() | settings | cluster.environment


def measure(folder: Path, name: str, number: int) -> dict[str, float]:
    """Measure classification in images per second and training in steps per second, on a separate cluster."""
    home = folder / f"{name}-{number}"
    home.mkdir()
    with ray_cluster(home) as cluster:
        for node, cpus in enumerate(LAYOUTS[name]):
            cluster.add_node(f"node-{node}", cpus=cpus)
        classified = figures(cluster, folder, "classify", f"{folder}/images", "--table", f"{name}-{number}")
        preset = ("--preset", "full", "--epochs", str(EPOCHS), "--workers", "2")
        trained = figures(cluster, folder, "train", *preset)
    return {"images": classified["images_per_second"], "training_images": trained["images_per_second"]}


def seconds_until_replaced(folder: Path, number: int) -> float:
    """Return the seconds from the death of the only actor's node until the next shard is done."""
    home, table = folder / f"killed-{number}", f"killed-{number}"
    home.mkdir()
    with ray_cluster(home) as cluster:
        for name in ("one", "two"):
            cluster.add_node(name, cpus=1)
        command = [FMNIST, "classify", f"{folder}/images", "--table", table, "--max-workers", "1"]
        process = subprocess.Popen(command, env=environment(cluster, folder), stderr=subprocess.DEVNULL)
        try:
            await_parts(folder, table, more_than=2)
            cluster.kill(node_of("ShardClassifier", cluster))
            died, parts = time.monotonic(), len(parts_of(folder, table))
            await_parts(folder, table, more_than=parts)
            return time.monotonic() - died
        finally:
            process.kill()
            process.wait()


def parts_of(folder: Path, table: str) -> list[Path]:
    return list((folder / "store/predictions" / table).glob("_parts/batch=*/*.parquet"))


def await_parts(folder: Path, table: str, *, more_than: int) -> None:
    deadline = time.monotonic() + 120
    while len(parts_of(folder, table)) <= more_than:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{table} has no more than {more_than} parts.")
        time.sleep(0.02)


def node_of(actor: str, cluster: Cluster) -> str:
    """Return the node on which an actor runs."""
    for name, node in cluster.nodes.items():
        if any(actor in child.name() + " ".join(child.cmdline()) for child in children(node.pid)):
            return name
    raise LookupError(f"no node runs {actor}")


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LAYOUTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images")
        make_model(f"file://{folder}/store")
        for number in range(runs):
            for layout, figures_of in found.items():
                figures_of.append(measure(folder, layout, number))
            print(json.dumps(found), flush=True)
        replaced = [round(seconds_until_replaced(folder, number), 1) for number in range(runs)]
    result: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count(), "runs": runs}
    for kind in ("images", "training_images"):
        medians = {layout: statistics.median(run[kind] for run in of) for layout, of in found.items()}
        pairs = zip(found["two_nodes"], found["one_node"], strict=True)
        ratio = statistics.median(two[kind] / one[kind] for two, one in pairs)
        result[f"{kind}_per_second"] = {layout: round(value) for layout, value in medians.items()}
        result[f"{kind}_two_nodes_to_one"] = round(ratio, 3)
    result["seconds_from_a_nodes_death_to_the_next_shard"] = replaced
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
