"""Measure what it costs to dispatch shards to many actors, independent of the actors' work.

Up to 50 actors are real, each a process, and the project's own pool dispatches to them. For more, Ray's `ActorPool`
dispatches to places in a few processes, because a thousand processes need more memory than this machine has. It makes
the same requests to Ray for each shard.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.classification import last_json

PROCESSES = 4
"""Number of processes that share the places if more than MOST_ACTORS shards are in progress."""
MOST_ACTORS = 50
"""Maximum number of actor processes at once."""
_WARM_UP, _WARM_UP_SECONDS = 40, 0.5
"""Number of slow first shards per actor, and seconds of each. Some actors start long after others are at work."""


def measure_dispatch(in_flight: int, shards: int = 20_000) -> dict[str, Any]:
    """Dispatch `shards` shards, with up to `in_flight` of them in progress at once."""
    kind = "actors" if in_flight <= MOST_ACTORS else "places"
    return last_json("tests.benchmarks.scale.dispatch", kind, str(in_flight), str(shards))


class Actor:
    """Do nothing with a shard and return a classifier's result. The first shards wait until all actors run."""

    def __init__(self, warm_up: int, record: Any) -> None:
        self._warm_up, self._record = warm_up, record

    def ready(self) -> None:
        """Return once the process runs."""

    def work(self, shard: int) -> Any:
        """Return the process ID and the shard's record."""
        if shard < self._warm_up:
            time.sleep(_WARM_UP_SECONDS)
        return os.getpid(), self._record.model_copy(update={"shard": shard})


def _main(kind: str, in_flight: int, shards: int) -> None:
    from flows.cli.services import prepare_environment

    prepare_environment()
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    figures = (_by_actors if kind == "actors" else _by_places)(in_flight, shards)
    ray.shutdown()
    print(json.dumps({"kind": kind, "in_flight": in_flight, "shards": shards} | figures))


def _by_actors(in_flight: int, shards: int) -> dict[str, Any]:
    from infra.cluster.actor_pool import map_shards
    from infra.cluster.resources import ActorResources

    resources = ActorResources(worker_cpus=0, worker_gpus=0, max_workers=in_flight)
    warm_up = _WARM_UP * in_flight
    record = typical_record()
    seen: dict[int, float] = {}
    meter = None
    began = time.perf_counter()
    with map_shards(Actor, (warm_up, record), range(warm_up + shards), resources, what="The run") as results:
        for pid, done in results:
            if pid not in seen:
                seen[pid] = time.perf_counter() - began
            if meter is None and done.shard >= warm_up:
                meter = _Meter()
    starts = sorted(seen.values())
    assert meter is not None
    return {
        "first_actor_seconds": round(starts[0], 2),
        "last_actor_seconds": round(starts[-1], 2),
        "actors": len(starts),
        **meter.figures(shards),
    }


def typical_record() -> Any:
    """Make the record of a shard of 20,000 images, which actors send to the driver."""
    from infra.storage.object_store import open_store
    from tests.benchmarks.made_batches import finish_shard, plan_made

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"file://{folder}/store")
        plan = plan_made(store, "dispatch", 1, shards=1, rows=20_000, scratch=Path(folder))
        return finish_shard(store, plan, 0, 20_000)


def _by_places(in_flight: int, shards: int) -> dict[str, Any]:
    import ray
    from ray.util import ActorPool

    places = in_flight // PROCESSES
    actor = ray.remote(num_cpus=0, max_concurrency=places)(Actor)
    record = typical_record()
    handles = [actor.remote(0, record) for _ in range(PROCESSES)]
    ray.get([handle.ready.remote() for handle in handles])
    pool = ActorPool([handle for handle in handles for _ in range(places)])
    meter = _Meter()
    for shard in range(shards):
        pool.submit(lambda handle, shard: handle.work.remote(shard), shard)
    while pool.has_next():
        pool.get_next_unordered(timeout=2)
    return meter.figures(shards)


class _Meter:
    """Meter of the CPU time that this process and Ray's head process use after its creation."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = _cpu_seconds()

    def figures(self, shards: int) -> dict[str, Any]:
        """Return shards per second, CPU milliseconds per shard by process, and memory in MiB."""
        seconds = time.perf_counter() - self._began
        return {
            "shards_per_second": round(shards / seconds),
            "cpu_ms_a_shard": {
                role: round(1000 * (spent - self._cpu.get(role, 0.0)) / shards, 4)
                for role, spent in _cpu_seconds().items()
            },
            "driver_mib": round(psutil.Process().memory_full_info().uss / 2**20),
            "head_mib": round(_head().memory_full_info().uss / 2**20),
        }


def _cpu_seconds() -> dict[str, float]:
    head = _head()
    return {"driver": sum(psutil.Process().cpu_times()[:2]), "head": sum(head.cpu_times()[:2])}


def _head() -> psutil.Process:
    [found] = [process for process in psutil.Process().children(recursive=True) if process.name() == "gcs_server"]
    return found


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
