"""Shards of work mapped over Ray actors, as many as the cluster has room for at the time.

The next shard goes to the actor that is free, and none to one that still waits for its node; the shard of an actor that
dies goes to another. The pool grows when the cluster does, and gives its room back as soon as there is nothing left to
hand out.

Measured against Ray Data's actor pool over the same shards (docs/performance.md): Ray Data takes three seconds longer
to start, and hands out thousands of tiny shards a little faster; planning makes none that small. Ray's own `ActorPool`
hands shards to actors for which there is no node yet. Ray's own retries of an actor's task may be spent within a second
or two, before Ray has noticed that the actor's node is gone.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from infra.cluster.connection import cluster_limit
from infra.cluster.resources import ActorResources
from infra.errors import JobError

_DEATHS = 3
"""Of actors under the same shard, or of actors that start, one after the other, that are got over."""
_LOOK_SECONDS = 2.0
"""How often the size of the cluster is looked at."""


@contextmanager
def map_shards(
    actor_class: type, arguments: tuple[Any, ...], shards: Sequence[int], resources: ActorResources, *, what: str
) -> Iterator[Iterator[Any]]:
    """Have actors do shards; the block begins when the first actor is ready, and all are gone when it ends.

    Args:
        actor_class: with the methods `ready()` and `work(shard)`, which may be called again for the same shard.
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

    pool = _Pool(actor_class, arguments, shards, resources)
    try:
        pool.await_first()
        yield pool.results()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        text = (str(cause).strip() or type(cause).__name__).splitlines()[-1].rstrip(".")
        raise JobError(f"{what} failed: {text}. The finished shards are kept; run it again.") from error
    finally:
        pool.end()


class _Pool:
    def __init__(
        self, actor_class: type, arguments: tuple[Any, ...], shards: Sequence[int], resources: ActorResources
    ) -> None:
        import ray

        actor = ray.remote(max_restarts=0, max_task_retries=0)(actor_class)
        self._actor = actor.options(**resources.options(has_gpus=cluster_limit().gpus > 0))
        self._arguments, self._resources = arguments, resources
        self._left = deque(shards)
        # Actors, and the shards that they do, by what they are to answer.
        self._starting: dict[Any, Any] = {}
        self._working: dict[Any, tuple[Any, int]] = {}
        self._deaths: Counter[int | None] = Counter()

    def await_first(self) -> None:
        """Wait until an actor is ready."""
        self._grow()
        while not self._working:
            self._answers()

    def results(self) -> Iterator[Any]:
        """What the actors return, until all is done."""
        looked = time.monotonic()
        while self._working or self._left:
            yield from self._answers()
            if not self._left:
                self._kill(self._starting.values())
                self._starting.clear()
            elif time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                self._grow()

    def end(self) -> None:
        """Have no actor left."""
        self._kill([*self._starting.values(), *(actor for actor, _ in self._working.values())])

    def _grow(self) -> None:
        limit = cluster_limit()
        room = self._resources.room(cpus=limit.cpus, gpus=limit.gpus) - len(self._starting) - len(self._working)
        for _ in range(min(room, len(self._left) - len(self._starting))):
            actor = self._actor.remote(*self._arguments)
            self._starting[actor.ready.remote()] = actor

    def _answers(self) -> list[Any]:
        """Give actors that are ready or done their next shard, and return what those that are done returned."""
        import ray

        results = []
        answers, _ = ray.wait([*self._starting, *self._working], num_returns=1, timeout=_LOOK_SECONDS)
        for answer in answers:
            starts = answer in self._starting
            actor, shard = (self._starting.pop(answer), None) if starts else self._working.pop(answer)
            try:
                value = ray.get(answer)
            except ray.exceptions.RayActorError as error:
                self._replace(actor, shard, error)
                continue
            except BaseException:
                ray.kill(actor)
                raise
            if starts:
                self._deaths[None] = 0
            else:
                results.append(value)
            self._hand_out(actor)
        return results

    def _hand_out(self, actor: Any) -> None:
        if not self._left:
            self._kill([actor])
            return
        shard = self._left.popleft()
        self._working[actor.work.remote(shard)] = actor, shard

    def _replace(self, actor: Any, shard: int | None, error: Any) -> None:
        """Get over an actor that died, or whose node can't be reached, under a shard or while it started."""
        self._kill([actor])
        self._deaths[shard] += 1
        if self._deaths[shard] > _DEATHS or getattr(error, "actor_init_failed", False):
            raise error
        if shard is not None:
            self._left.appendleft(shard)
        self._grow()

    @staticmethod
    def _kill(actors: Any) -> None:
        import ray

        for actor in actors:
            ray.kill(actor)
