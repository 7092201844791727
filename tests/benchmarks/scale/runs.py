"""Run the classification flow over synthetic rows, and measure each of its processes.

The flow, Prefect, Ray and the actors are real. Only the images are synthetic: raw pixels in Parquet.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.classification import last_json, make_model

SHARD_IMAGES = 32
FILE_IMAGES = 10_000
_ROLES = {
    "gcs_server": "head",
    "raylet": "raylet",
    "ray::_Board": "board",
    "ray::ShardClass": "actor",
    "prefect": "prefect",
}
"""Role of a process by the start of its name. This process is the driver, which dispatches the shards."""


def measure_shards(shards: int) -> dict[str, Any]:
    """Classify many small files, each a shard. Also kill such a run halfway and let another run finish it."""
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "images", shards, SHARD_IMAGES)
        settings = {"FMNIST_STORE": f"file://{folder}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
        make_model(settings["FMNIST_STORE"])
        whole = run_flow(images, "whole", settings, each_file_a_shard=True)
        taken_over = _kill_at_half(images, "killed", settings, shards)
        finished = run_flow(images, "killed", settings, each_file_a_shard=True)
        again = run_flow(images, "killed", settings, each_file_a_shard=True)
    keep = ("flow_seconds", "steps")
    return {
        "shards": shards,
        "images_a_shard": SHARD_IMAGES,
        **whole,
        "killed_at_half": taken_over,
        "finished_after": {name: finished[name] for name in keep},
        "nothing_new": {name: again[name] for name in keep},
    }


def measure_images(images: int) -> dict[str, Any]:
    """Classify `images` images in shards of the planned size. The files are hard links to one file."""
    with tempfile.TemporaryDirectory() as folder:
        places = write_images(Path(folder) / "images", images // FILE_IMAGES, FILE_IMAGES, same=True)
        settings = {"FMNIST_STORE": f"file://{folder}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
        make_model(settings["FMNIST_STORE"])
        return {"images": images, **run_flow(places, "whole", settings)}


def write_images(folder: Path, files: int, images: int, *, same: bool = False) -> Path:
    """Write `files` Parquet files of `images` rows of random raw pixels. With `same`, they are links to one file."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(files):
        path = folder / f"{number:06d}.parquet"
        if same and number:
            os.link(folder / "000000.parquet", path)
            continue
        pixels = pa.py_buffer(draw.integers(0, 256, 784 * images, dtype=np.uint8).tobytes())
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(784), images, [None, pixels])
        pq.write_table(pa.table({"image": column}), path, compression="none", use_dictionary=False)
    return folder


def run_flow(
    images: Path | str, table: str, settings: dict[str, str], *, each_file_a_shard: bool = False, report: bool = True
) -> dict[str, Any]:
    """Run the flow in a separate process."""
    before = _prefect_rows(settings)
    mode = "files" if each_file_a_shard else "planned"
    reports = "report" if report else "no report"
    figures = last_json("tests.benchmarks.scale.runs", str(images), table, mode, reports, **settings)
    after = _prefect_rows(settings)
    figures["prefect_rows"] = {name: after[name] - before.get(name, 0) for name in after}
    return figures


def _prefect_rows(settings: dict[str, str]) -> dict[str, int]:
    """Count the rows in the database of the run's own Prefect server."""
    found = {}
    for path in Path(settings["FMNIST_STATE_DIR"]).glob("prefect/**/*.db"):
        with sqlite3.connect(path) as database:
            for name in ("log", "artifact", "task_run", "events"):
                with suppress(sqlite3.OperationalError):
                    [(found[name],)] = database.execute(f"SELECT count(*) FROM {name}").fetchall()
    return found


def _kill_at_half(images: Path, table: str, settings: dict[str, str], shards: int) -> dict[str, Any]:
    """Kill the flow's process when half of the shards are done, then find these shards as the next run does."""
    from infra.storage.object_store import open_store
    from infra.storage.tables.planning.batches import list_batches
    from infra.storage.tables.planning.plan import find_plan
    from infra.storage.tables.records import damaged_shards, read_records

    command = [sys.executable, "-m", "tests.benchmarks.scale.runs", str(images), table, "files", "report"]
    run = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL)
    folder = Path(settings["FMNIST_STORE"].removeprefix("file://")) / "work" / table
    deadline = time.monotonic() + 400
    while sum(1 for _ in folder.glob("*/shards/*.json")) < shards // 2:
        assert run.poll() is None, "The run ended before half of its shards were done."
        assert time.monotonic() < deadline, "The run took too long for half of its shards."
        time.sleep(0.1)
    started_by_it = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    run.wait()
    for process in psutil.wait_procs(started_by_it, timeout=100)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    store = open_store(settings["FMNIST_STORE"])
    [entry] = list_batches(store, table)
    plan = find_plan(store, table, entry.batch)
    assert plan is not None
    began = time.perf_counter()
    records = read_records(store, plan)
    assert not damaged_shards(store, plan, records.values())
    return {"shards_done": len(records), "take_over_seconds": round(time.perf_counter() - began, 3)}


@dataclass
class Watch:
    """Sample the resources of this process and its children twice a second during the block."""

    peak_mib: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> "Watch":
        self._ended, self._roles = threading.Event(), dict[int, str]()
        self._cpu: dict[int, float] = {}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()
        for pid, seconds in self._cpu.items():
            role = self._roles[pid]
            self.cpu_seconds[role] = round(self.cpu_seconds.get(role, 0.0) + seconds, 2)
        self.peak_mib = {role: round(mib) for role, mib in self.peak_mib.items()}

    def _watch(self) -> None:
        own = psutil.Process()
        self._roles[own.pid] = "driver"
        began = {own.pid: sum(own.cpu_times()[:2])}
        while not self._ended.wait(0.5):
            for process in [own, *own.children(recursive=True)]:
                with suppress(psutil.Error):
                    role = self._roles.get(process.pid) or _role(process)
                    if role is None:
                        continue
                    self._roles[process.pid] = role
                    self._cpu[process.pid] = sum(process.cpu_times()[:2]) - began.get(process.pid, 0.0)
                    mib = process.memory_full_info().uss / 2**20
                    self.peak_mib[role] = max(self.peak_mib.get(role, 0.0), mib)


def _role(process: psutil.Process) -> str | None:
    title = " ".join(process.cmdline())
    name = process.name()
    for begins, role in _ROLES.items():
        if name.startswith(begins) or title.startswith(begins):
            return role
    return "prefect" if "infra.orchestration.server" in title else None


def _main(images: str, table: str, mode: str, reports: str) -> None:
    """Run the flow in this process and print its measurements."""
    from flows.cli.services import prepare_environment, services

    prepare_environment()
    import ray

    import flows.classify
    from flows.parameters import ClassifyParameters
    from infra.settings import load_settings
    from infra.storage.object_store import open_store
    from infra.storage.tables.planning import plan

    if mode == "files":  # makes every piece larger than a share
        plan.SMALLEST_SHARD = plan.LARGEST_SHARD = 1.0
    if reports == "no report":
        setattr(flows.classify, "write_batch_reports", lambda _: [])  # noqa: B010 (a task's type is another)
    steps: dict[str, float] = {}
    batches: list[Any] = []
    for name in ("plan_batch", "classify_shards", "commit_batches", "write_batch_reports"):
        _time(flows.classify, name, steps, batches)
    settings = load_settings()
    with services(settings), Watch() as watch:
        before = _plasma()
        began = time.perf_counter()
        summary = flows.classify.classify(ClassifyParameters(inputs=[images], table=table))
        seconds = time.perf_counter() - began
        after = _plasma()
        ray.shutdown()
    figures: dict[str, Any] = {
        "predicted": sum(books.predicted for books in summary.batches),
        "flow_seconds": round(seconds, 2),
        "steps": {name: round(spent, 3) for name, spent in steps.items()},
        "peak_mib": watch.peak_mib,
        "cpu_seconds": watch.cpu_seconds,
        "object_store_bytes": {"used": after[0], "written": after[1] - before[1]},
    }
    if batches:
        [batch] = batches
        store = open_store(settings.store)
        figures |= {
            "shards": batch.plan.shards,
            "from_first_actor_seconds": round(batch.seconds, 2),
            "log_bytes": log_bytes(store, table),
        }
    print(json.dumps(figures))


def log_bytes(store: Any, table: str) -> int:
    """Return the size of the largest entry in a table's Delta log, the commit of its largest batch."""
    from infra.storage.keys import table_folder

    entries = store.list(f"{table_folder(table)}/_delta_log/")
    return max(stat.size for stat in entries if stat.key.endswith(".json"))


def _time(owner: Any, name: str, steps: dict[str, float], batches: list[Any]) -> None:
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = function(*arguments, **options)
        steps[name] = time.perf_counter() - began
        if name == "classify_shards":
            batches.extend(result)
        return result

    setattr(owner, name, timed)


def _plasma() -> tuple[int, int]:
    """Return the bytes in Ray's object store, and the total ever written to it."""
    import ray
    from ray._private.internal_api import node_stats

    [node] = ray.nodes()
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats
    return int(stats.object_store_bytes_used), int(stats.cumulative_created_bytes)


if __name__ == "__main__":
    _main(*sys.argv[1:])
