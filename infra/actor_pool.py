"""Shards of work mapped over Ray actors, as many as the cluster has room for at the time.

Ray's own parts do most of it: `ActorPool` hands the next shard to the actor that is free, and Ray restarts an actor
that died, on another node if need be, and gives it its shard again. What is added here: the pool grows when the cluster
does, and gives its room back as soon as there is nothing left to hand out.

Measured against Ray Data's actor pool over the same shards (docs/performance.md): Ray Data takes three seconds longer
to start, and hands out thousands of tiny shards a little faster; planning makes none that small.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from infra.actor_resources import ActorResources
from infra.errors import JobError
from infra.ray_cluster import cluster_cpus, cluster_gpus

_RESTARTS = 3
"""Of an actor, and of a shard whose actor died under it."""
_LOOK_SECONDS = 2.0
"""How often the size of the cluster is looked at."""


@contextmanager
def map_shards(
    actor_class: type, arguments: tuple[Any, ...], shards: Sequence[int], resources: ActorResources, *, what: str
) -> Iterator[Iterator[Any]]:
    """Have actors do shards; the block begins when the first actor is ready, and all are gone when it ends.

    Args:
        actor_class: with the methods `ready()` and `work(shard)`.
        arguments: of its constructor.
        shards: at least one.
        resources: of each actor.
        what: the job's name, for messages.

    Returns:
        What `work` returned for each shard, as they are done.

    Raises:
        JobError: an actor or a shard fails again and again.
    """
    import ray
    from ray.util import ActorPool

    actor = ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(actor_class)
    actor = actor.options(**resources.options(has_gpus=cluster_gpus() > 0))
    actors: list[Any] = []

    pool = ActorPool([])

    def grow() -> None:
        room = resources.room(cpus=cluster_cpus(), gpus=cluster_gpus())
        for _ in range(min(room, len(shards)) - len(actors)):
            actors.append(actor.remote(*arguments))
            pool.push(actors[-1])

    def results() -> Iterator[Any]:
        looked = time.monotonic()
        for shard in shards:
            pool.submit(lambda handle, shard: handle.work.remote(shard), shard)
        while pool.has_next():
            try:
                yield pool.get_next_unordered(timeout=_LOOK_SECONDS)
            except TimeoutError as error:
                if isinstance(error, ray.exceptions.RayError):  # a shard's own
                    raise
            if pool.has_free():  # nothing is left to hand out
                while (idle := pool.pop_idle()) is not None:
                    ray.kill(idle)
            elif time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                grow()

    try:
        grow()
        ray.get(ray.wait([handle.ready.remote() for handle in actors], num_returns=1)[0])
        yield results()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        text = (str(cause).strip() or type(cause).__name__).splitlines()[-1].rstrip(".")
        raise JobError(f"{what} failed: {text}. The finished shards are kept; run it again.") from error
    finally:
        for handle in actors:
            ray.kill(handle)
