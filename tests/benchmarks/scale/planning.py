"""Measure the planning of millions of loose objects, stage by stage.

This is part of tests/benchmarks/scale. A simulated server provides the listing, and everything else is real.
"""

import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.scale.simulated_bucket import BUCKET, in_a_process, simulated_bucket


def measure_planning(objects: int) -> dict[str, Any]:
    """Plan `objects` objects twice, each time in a new process: once from nothing, once with no new objects."""
    with simulated_bucket() as bucket, tempfile.TemporaryDirectory() as folder:
        bucket.value = objects
        return {"objects": objects, "anew": in_a_process(_plan, folder), "nothing_new": in_a_process(_plan, folder)}


def measure_new_image(batches: int, files: int = 100) -> dict[str, Any]:
    """Plan one new image in a table with `batches` committed batches of `files` files each."""
    from infra.storage.object_store import open_store
    from infra.storage.tables.planning.batches import read_catalog
    from infra.storage.tables.planning.index_compaction import compact_index
    from tests.unit.infra.storage.tables.numbered_batches import add_batch, commit_batches

    with tempfile.TemporaryDirectory() as folder:
        store, scratch = open_store(f"file://{folder}/store"), Path(folder) / "scratch"
        scratch.mkdir()
        entries = [
            add_batch(
                store,
                number,
                [(f"s3://simulated/images/{file:04d}/{number:08d}.png", f"258-{number}", 1) for file in range(files)],
                scratch,
            )
            for number in range(1, batches + 1)
        ]
        commit_batches(store, entries)
        began = time.perf_counter()
        compact_index(store, read_catalog(store, "t"), scratch)
        compacted = time.perf_counter() - began
        return {
            "batches": batches,
            "files_by_batch": files,
            "compact_all_seconds": round(compacted, 1),
            "index_bytes": sum(stat.size for stat in store.list("work/t/index/")),
        } | in_a_process(_plan_one, folder)


def _plan_one(folder: str, results: Any) -> None:
    from infra.storage.object_store import open_store
    from tasks.classification.options import ReadOptions
    from tasks.classification.plan import plan_inputs
    from tests.unit.tasks.classification.image_inputs import model_version, touch

    touch(Path(folder), "new.png")
    store, scratch = open_store(f"file://{folder}/store"), Path(folder) / "scratch-of-one"
    scratch.mkdir()
    began = time.perf_counter()
    work = plan_inputs(
        store, [f"{folder}/new.png"], table="t", model=model_version(1), options=ReadOptions(), scratch=scratch
    )
    assert [plan.planned for plan in work.plans] == [1]
    results.put(
        {
            "seconds": round(time.perf_counter() - began, 2),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
    )


def _plan(folder: str, results: Any) -> None:
    """Plan everything in the bucket, and report seconds by stage, peak memory, peak disk use and plan size."""
    from infra.storage.object_store import open_store
    from infra.storage.tables.planning.staged_inputs import StagedInputs
    from tasks.classification import plan as planning
    from tasks.classification.inputs import ReadOptions
    from tests.unit.tasks.classification.image_inputs import model_version

    stages: dict[str, float] = {}
    time_stage(StagedInputs, "stage", "list and keep", stages)
    time_stage(StagedInputs, "compare", "compare, sort, cut into pieces", stages)
    time_stage(planning, "_write_pieces", "compare, sort, cut into pieces", stages)
    time_stage(planning, "write_plan", "digest and write the plan", stages)
    scratch = Path(folder) / f"scratch-{os.getpid()}"
    scratch.mkdir()
    store = open_store(f"file://{folder}/store")
    began, cpu = time.perf_counter(), time.process_time()
    with most_bytes_in(scratch) as most:
        work = planning.plan_inputs(
            store,
            [BUCKET],
            table="planned",
            model=model_version(1),
            options=ReadOptions(),
            scratch=scratch,
        )
    found: dict[str, Any] = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "stages": {name: round(seconds, 1) for name, seconds in stages.items()},
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "scratch_mib": round(most["bytes"] / 2**20, 1),
        "planned": sum(plan.planned for plan in work.plans),
        "shards": sum(plan.shards for plan in work.plans),
    }
    if not (Path(folder) / "first").exists():  # the second run finds nothing new, so it has only the first plan
        (Path(folder) / "first").touch()
        found |= _plan_object(store, work.plans[-1])
    results.put(found)


def _plan_object(store: Any, plan: Any) -> dict[str, Any]:
    """Return the size of the plan that each actor opens, and the cost of opening it and reading a shard."""
    import pyarrow.parquet as pq

    from infra.storage.keys import plan_key
    from infra.storage.tables.planning.plan import ShardInputs

    key = plan_key(plan.table, plan.batch)
    filesystem, path = store.arrow(key)
    metadata = pq.read_metadata(path, filesystem=filesystem)
    began = time.perf_counter()
    inputs = ShardInputs(store, plan)
    opened = time.perf_counter()
    inputs.of(plan.shards // 2)
    return {
        "plan_bytes": store.stat(key).size,
        "plan_row_groups": metadata.num_row_groups,
        "plan_footer_bytes": metadata.serialized_size,
        "open_plan_seconds": round(opened - began, 4),
        "read_shard_seconds": round(time.perf_counter() - opened, 4),
    }


def time_stage(owner: Any, name: str, stage: str, stages: dict[str, float]) -> None:
    """Wrap a function so that it adds its seconds to `stages`."""
    function: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            stages[stage] = stages.get(stage, 0.0) + time.perf_counter() - began

    setattr(owner, name, timed)


@contextmanager
def most_bytes_in(folder: Path) -> Iterator[dict[str, int]]:
    """Track the maximum bytes in a folder during the block, sampled four times a second."""
    most, ended = {"bytes": 0}, threading.Event()

    def look() -> None:
        while not ended.wait(0.25):
            size = 0
            for path in folder.rglob("*"):
                try:
                    size += path.stat().st_blocks * 512
                except FileNotFoundError:  # deleted in the meantime
                    continue
            most["bytes"] = max(most["bytes"], size)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
