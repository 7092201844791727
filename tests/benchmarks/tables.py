"""Measure prediction tables with many shards or many batches: commit, `fmnist predictions show`, planning, S3 requests.

    python -m tests.benchmarks.tables [--commit 10000] [--show 1000] [--planning 10000]
    eval "$(make -s s3-up)"; python -m tests.benchmarks.tables --requests 10

- `--commit SHARDS`: commit one batch. Its parts are real but small: 20 rows per shard, of which every hundredth shard
  has one in quarantine. `seconds` is the time of `commit_batch`, and `stages` shows what it consists of.
- `--show BATCHES`: run `fmnist predictions show` on a table with batches of 100 rows, each committed on its own.
- `--planning BATCHES`: plan one new image in a table with batches of one file. The first plan has no index of planned
  files yet, as after an upgrade, and writes it.
- `--requests FILES`: count the S3 requests per 10,000 images of a whole run of the flow over Parquet files of 10,000
  PNGs, with a proxy in front of the server.

Without an option, everything but the requests is measured. The results are added to
tests/benchmarks/results/tables.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.benchmarks.classification import last_json, make_images, make_model
from tests.benchmarks.scale.requests import count_request, server_of_environment
from tests.harness.s3_server import faulty_proxy

RESULTS = Path(__file__).parent / "results" / "tables.json"
TABLE = "measured"
DEFAULTS = {"commit": 10_000, "show": 1_000, "planning": 10_000}
"""Size of each measurement that needs no S3."""
SHARD_ROWS, BATCH_ROWS = 20, 100
SHOW_RUNS = 5
_THREADS = 8
"""Threads that write small objects. A write waits for the disk most of the time."""


def measure_commit(shards: int) -> dict[str, Any]:
    """Commit one batch of `shards` shards to a new table."""
    from infra.storage.keys import batch_folder, books_folder, quarantine_folder, table_folder
    from infra.storage.object_store import open_store
    from infra.storage.tables.commit import commit_batch
    from infra.storage.tables.records import read_records
    from tests.benchmarks import made_batches

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"file://{folder}/store")
        plan = made_batches.plan_made(store, TABLE, 1, shards=shards, rows=SHARD_ROWS, scratch=Path(folder))

        def finish(shard: int) -> None:
            made_batches.finish_shard(store, plan, shard, SHARD_ROWS, rejected=int(shard % 100 == 0))

        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(finish, range(shards)))
        stages: dict[str, float] = {}
        _time_stages(stages)
        began = time.perf_counter()
        records = read_records(store, plan)
        read = time.perf_counter()
        commit_batch(store, plan, records, made_batches.SCHEMAS, model=made_batches.MODEL, temperature=1.0, seconds=1.0)
        committed = time.perf_counter()
        folders = {"predictions": table_folder, "quarantine": quarantine_folder, "books": books_folder}
        return {
            "shards": shards,
            "read_records_seconds": round(read - began, 3),
            "seconds": round(committed - read, 3),
            "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
            "log_entry_bytes": {name: _log_entry_bytes(store, of(TABLE)) for name, of in folders.items()},
            "records_bytes": sum(stat.size for stat in store.list(f"{batch_folder(TABLE, plan.batch)}/shards/")),
            "peak_mib": _peak_mib(),
        }


def measure_show(batches: int) -> dict[str, Any]:
    """Commit `batches` batches of 100 rows one by one, then run `fmnist predictions show`."""
    from infra.storage.object_store import open_store
    from infra.storage.tables.commit import commit_batch
    from infra.storage.tables.maintenance.rewrite import tidy_books
    from infra.storage.tables.planning.batches import read_catalog
    from infra.storage.tables.planning.index_compaction import compact_index
    from tests.benchmarks import made_batches

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"file://{folder}/store")
        commits = []
        for number in range(1, batches + 1):
            plan = made_batches.plan_made(store, TABLE, number, shards=1, rows=BATCH_ROWS, scratch=Path(folder))
            records = {0: made_batches.finish_shard(store, plan, 0, BATCH_ROWS)}
            began = time.perf_counter()
            commit_batch(
                store, plan, records, made_batches.SCHEMAS, model=made_batches.MODEL, temperature=1.0, seconds=1.0
            )
            commits.append(time.perf_counter() - began)
            tidy_books(store, TABLE)  # runs do it after each commit
        compact_index(store, read_catalog(store, TABLE), Path(folder))  # planners do it after each batch
        command = [sys.executable, "-m", "flows.cli.main", "predictions", "show", TABLE]
        environment = os.environ | {"FMNIST_STORE": store.root, "FMNIST_STATE_DIR": f"{folder}/state"}
        seconds = []
        for _ in range(SHOW_RUNS):
            began = time.perf_counter()
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - began)
    return {
        "batches": batches,
        "show_seconds": round(statistics.median(seconds), 2),
        "first_commits_seconds": round(statistics.median(commits[:20]), 3),
        "last_commits_seconds": round(statistics.median(commits[-20:]), 3),
    }


def measure_planning(batches: int) -> dict[str, Any]:
    """Plan one new image, twice, in a table with `batches` committed batches. Each plan has a process of its own."""
    from infra.storage.keys import index_folder
    from infra.storage.object_store import open_store

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"file://{folder}/store")
        make_table(store, batches, Path(folder))
        figures: dict[str, Any] = {"batches": batches}
        for name in ("without_index", "with_index"):
            image = Path(folder) / f"{name}.png"
            image.write_bytes(b"not read while planning")
            figures[name] = last_json("tests.benchmarks.tables", "--plan", store.root, image)
        figures["index_bytes"] = sum(stat.size for stat in store.list(f"{index_folder(TABLE)}/"))
        return figures


def make_table(store: Any, batches: int, folder: Path) -> None:
    """Make a table with `batches` batches of one file each, without the rows and without an index."""
    from infra.storage.keys import table_folder
    from infra.storage.tables.delta import ensure_delta
    from tests.benchmarks.made_batches import SCHEMAS, plan_made, unwritten_part

    def plan(number: int) -> str:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            return plan_made(store, TABLE, number, shards=1, rows=1, scratch=Path(scratch)).batch

    with ThreadPoolExecutor(_THREADS) as threads:
        ids = list(threads.map(plan, range(1, batches + 1)))
    table = ensure_delta(
        store, table_folder(TABLE), SCHEMAS.predictions, name=TABLE, description="Made for a benchmark"
    )
    table.add({batch: [unwritten_part(batch)] for batch in ids})


def plan_image(root: str, image: str) -> None:
    """Plan one image in this process and print the measurements."""
    from infra.storage.object_store import open_store
    from tasks.classification.options import ReadOptions
    from tasks.classification.plan import plan_inputs
    from tests.benchmarks.made_batches import MODEL

    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        work = plan_inputs(
            open_store(root), [image], table=TABLE, model=MODEL, options=ReadOptions(), scratch=Path(scratch)
        )
        seconds = time.perf_counter() - began
    assert work.plans[-1].planned == 1
    print(json.dumps({"seconds": round(seconds, 2), "peak_mib": _peak_mib()}))


def measure_requests(files: int) -> dict[str, Any]:
    """Count the requests of one run of the flow over `files` Parquet files of 10,000 PNGs on S3, with its report."""
    root = os.environ.get("FMNIST_STORE", "")
    if not root.startswith("s3://"):
        raise SystemExit('S3 is needed: eval "$(make -s s3-up)"')
    own = f"{root}/tables-{uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images", files, "png")
        _upload(Path(folder) / "images", f"{own}/images")
        make_model(f"{own}/store")
        settings = {"FMNIST_STORE": f"{own}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
        counted: dict[str, Counter[str]] = {"store": Counter(), "inputs": Counter()}

        def count(exchange: Any) -> None:
            count_request(exchange, counted["inputs" if "/images" in exchange.path else "store"])

        with faulty_proxy(server_of_environment(), before=count) as proxy:
            command = ("tests.benchmarks.classification", "--ours", f"{own}/images/", TABLE)
            run = last_json(*command, **settings, **proxy.environment)
    share = run["images"] / 10_000
    return {
        "images": run["images"],
        "per_10000_images": {
            of: {method: round(requests / share, 1) for method, requests in sorted(counts.items())}
            for of, counts in counted.items()
        },
        "all_per_10000_images": round(sum(counts.total() for counts in counted.values()) / share, 1),
    }


def _upload(folder: Path, uri: str) -> None:
    import boto3

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    for path in sorted(folder.iterdir()):
        boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.name}")


def _time_stages(stages: dict[str, float]) -> None:
    """Make `commit_batch` add the seconds of its stages to `stages`, from now on."""
    from infra.storage.tables import commit
    from infra.storage.tables.delta import DeltaSnapshot
    from tests.benchmarks.scale.planning import time_stage

    time_stage(commit, "_check_parts", "verify the parts", stages)
    time_stage(commit, "write_books", "commit the books", stages)
    add = DeltaSnapshot.add

    def timed(snapshot: DeltaSnapshot, batches: Any) -> bool:
        began = time.perf_counter()
        committed = add(snapshot, batches)
        kind = "predictions" if snapshot.table.metadata().name == TABLE else "quarantine"
        stages[f"commit the {kind}"] = time.perf_counter() - began
        return committed

    setattr(DeltaSnapshot, "add", timed)  # noqa: B010 (a method of another class)


def _log_entry_bytes(store: Any, folder: str) -> int:
    """Return the size of the largest entry of a Delta log."""
    entries = store.list(f"{folder}/_delta_log/")
    return max(stat.size for stat in entries if stat.key.endswith(".json"))


def _peak_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure and add to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, unit in (("commit", "SHARDS"), ("show", "BATCHES"), ("planning", "BATCHES"), ("requests", "FILES")):
        parser.add_argument(f"--{name}", type=int, metavar=unit)
    parser.add_argument("--plan", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        plan_image(*arguments.plan)
        return
    measures = {
        "commit": measure_commit,
        "show": measure_show,
        "planning": measure_planning,
        "requests": measure_requests,
    }
    sizes = {name: getattr(arguments, name) for name in measures if getattr(arguments, name)} or DEFAULTS
    for name, size in sizes.items():
        keep(name, measures[name](size))


def keep(name: str, figures: dict[str, Any]) -> None:
    """Add measurements to the results and print them."""
    print(json.dumps({name: figures}), flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count()} | figures
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
