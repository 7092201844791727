"""Run the same shards with the same actor on the project's Ray actor pool and on Ray Data's.

    python -m tests.benchmarks.pools [--runs 3]

There are two workloads: 600,000 raw-pixel images in 60 shards, and 100,000 in 2,000 shards. The project uses Ray core's
actor pool. The time in seconds runs from the call to the last shard. It includes the start of the actors but not the
start of Ray. Each run is a separate process. The results are written to tests/benchmarks/results/pools.json.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.benchmarks.classification import last_json, make_images, make_model

RESULTS = Path(__file__).parent / "results" / "pools.json"
SIZES = {"60 shards of 10,000": (60, 10_000), "2,000 shards of 50": (2_000, 50)}
"""Number of shards, each one file, and images per shard."""


def run(pool: str, folder: str, images: str, shard_images: int) -> None:
    """Plan and classify in this process, and print the seconds."""
    from flows.cli.services import prepare_environment

    prepare_environment()
    import ray

    from infra.cluster.actor_pool import map_shards
    from infra.cluster.resources import ActorResources
    from infra.storage.model_registry import ModelRegistry
    from infra.storage.object_store import open_store
    from infra.storage.tables.planning import plan as planning
    from tasks.classification.actor import ShardClassifier, ShardTask
    from tasks.classification.options import ReadOptions
    from tasks.classification.plan import plan_inputs

    planning.SMALLEST_SHARD = planning.LARGEST_SHARD = shard_images * (1 + 784 / 2048)
    store = open_store(f"file://{folder}/store")
    model = ModelRegistry(store).resolve("champion")
    with tempfile.TemporaryDirectory() as scratch:
        work = plan_inputs(
            store, [images], table=f"table-{os.getpid()}", model=model, options=ReadOptions(), scratch=Path(scratch)
        )
    [plan] = work.plans
    arguments = (store.root, plan, model)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    began = time.perf_counter()
    if pool == "core":
        tasks = [ShardTask(shard) for shard in range(plan.shards)]
        with map_shards(ShardClassifier, arguments, tasks, ActorResources(), what="The run") as results:
            done = sum(record.predicted for record in results)
    else:

        class Worker(ShardClassifier):
            """The same actor with the interface that Ray Data calls."""

            def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
                return {"predicted": self.work(ShardTask(int(row["id"]))).predicted}

        shards = ray.data.range(plan.shards, override_num_blocks=min(plan.shards, 60))
        counted = shards.map(Worker, fn_constructor_args=arguments, concurrency=2, num_cpus=1)
        done = sum(row["predicted"] for row in counted.iter_rows())
    seconds = time.perf_counter() - began
    ray.shutdown()
    print(json.dumps({"shards": plan.shards, "images": done, "seconds": round(seconds, 2)}))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        pool, folder, images, shard_images = arguments.run
        run(pool, folder, images, int(shard_images))
        return

    results: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        make_model(f"file://{folder}/store")
        make_images(Path(folder) / "one", 1, "pixels")
        table = pq.read_table(Path(folder) / "one")
        for name, (shards, shard_images) in SIZES.items():
            images = Path(folder) / f"images-{shard_images}"
            images.mkdir()
            for number in range(shards):
                first = number * shard_images % len(table)
                pq.write_table(table.slice(first, shard_images), images / f"{number:04d}.parquet")
            figures: dict[str, list[dict[str, Any]]] = {"core": [], "data": []}
            for _ in range(arguments.runs):
                for pool, runs in figures.items():
                    command = ("--run", pool, folder, str(images), str(shard_images))
                    runs.append(last_json("tests.benchmarks.pools", *command))
                    print(json.dumps({name: {pool: runs[-1]}}), flush=True)
            results[name] = {
                pool: statistics.median(entry["seconds"] for entry in runs) for pool, runs in figures.items()
            }
            counts = {(entry["shards"], entry["images"]) for runs in figures.values() for entry in runs}
            assert counts == {(shards, shards * shard_images)}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
