"""Measure the comparison of listed objects with existing plans, by objects and by batches."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.classification import last_json
from tests.benchmarks.scale.planning import most_bytes_in

_LISTING = """
    SELECT printf('s3://simulated/images/%06d/%010d.png', number // 10000, number) AS uri,
        '258-' || md5(number::VARCHAR) AS fingerprint, 'image' AS kind, 600::BIGINT AS size, NULL::SMALLINT AS label
    FROM range({rows}) AS numbers(number)
"""
_NEW = 1_000


def measure_comparison(objects: int) -> dict[str, Any]:
    """Sort a listing of `objects` objects, compare it with a plan that lacks the last 1,000, count the planned."""
    return last_json("tests.benchmarks.scale.staging", "objects", str(objects))


def measure_batches(batches: int, store: str) -> dict[str, Any]:
    """Plan with no new objects, in a table that already has `batches` batches of one image each."""
    return last_json("tests.benchmarks.scale.staging", "batches", str(batches), FMNIST_STORE=store)


def _objects(objects: int) -> dict[str, Any]:
    import duckdb

    from infra.storage.tables.planning.plan import CHUNK_ROWS
    from infra.storage.tables.planning.staged_inputs import FILE_SCHEMA, PlannedFiles, StagedInputs

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        plan = Path(folder) / "plan.parquet"
        staged = StagedInputs(scratch)
        with duckdb.connect() as duck:
            listing = _LISTING.format(rows=objects)
            duck.execute(
                f"COPY (SELECT uri, fingerprint, 1::BIGINT AS rows FROM ({_LISTING.format(rows=objects - _NEW)})) "
                f"TO '{plan}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {CHUNK_ROWS})"
            )
            reader = duck.sql(listing).to_arrow_reader(CHUNK_ROWS)
            staged.stage(batch.cast(FILE_SCHEMA) for batch in reader)
        figures: dict[str, Any] = {"objects": objects, "listed_mib": round(_bytes(scratch) / 2**20)}
        planned = PlannedFiles("1", plans={1: plan})
        asked: dict[str, Callable[[], int]] = {
            "compare": lambda: sum(len(batch) for batch in staged.compare(planned).new_files()),
            "sort": lambda: sum(len(batch) for batch in staged.compare(PlannedFiles("1")).new_files()),
        }
        for name, ask in asked.items():
            began = time.perf_counter()
            with most_bytes_in(scratch) as most:
                found = ask()
            figures[name] = {
                "found": found,
                "seconds": round(time.perf_counter() - began, 1),
                "scratch_mib": round(most["bytes"] / 2**20),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
    return figures


def _batches(count: int) -> dict[str, Any]:
    from infra.settings import load_settings
    from infra.storage.object_store import open_store
    from infra.storage.tables.planning.batches import read_catalog
    from infra.storage.tables.planning.index_compaction import compact_index
    from infra.storage.tables.planning.staged_inputs import StagedInputs
    from tasks.classification import plan as planning
    from tasks.classification.inputs import list_files
    from tasks.classification.options import ReadOptions
    from tests.benchmarks.scale.planning import time_stage
    from tests.unit.infra.storage.tables.numbered_batches import add_batch, commit_batches
    from tests.unit.tasks.classification.image_inputs import model_version, touch

    options = ReadOptions()
    store = open_store(f"{load_settings().store}/batches-{count}-{time.time_ns():x}")
    with tempfile.TemporaryDirectory() as folder:
        images, scratch = Path(folder) / "images", Path(folder) / "scratch"
        scratch.mkdir()
        touch(images, *(f"{number:06d}.png" for number in range(count)))
        listed = [row for files in list_files([str(images)], options) for row in files.to_pylist()]
        entries = [
            add_batch(store, number, [(row["uri"], row["fingerprint"], 1)], scratch)
            for number, row in enumerate(listed, 1)
        ]
        commit_batches(store, entries)
        compact_index(store, read_catalog(store, "t"), scratch)
        stages: dict[str, float] = {}
        time_stage(planning, "_planned_files", "bring the index here", stages)
        time_stage(StagedInputs, "compare", "compare", stages)
        again = Path(folder) / "again"
        again.mkdir()
        began = time.perf_counter()
        work = planning.plan_inputs(
            store, [str(images)], table="t", model=model_version(1), options=options, scratch=again
        )
        assert (work.plans, work.done.images) == ([], count)
        return {
            "batches": count,
            "seconds": round(time.perf_counter() - began, 2),
            "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
            "index_bytes": sum(stat.size for stat in store.list("work/t/index/")),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


if __name__ == "__main__":
    print(json.dumps({"objects": _objects, "batches": _batches}[sys.argv[1]](int(sys.argv[2]))))
