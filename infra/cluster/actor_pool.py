"""Map shards of work over as many Ray actors as the cluster has room for.

A shard goes to an actor that is ready and free. If an actor dies, its shard goes to another one. The pool grows with
the cluster, and releases an actor as soon as no shard is left for it.

Ray Data's actor pool takes three seconds longer to start over the same shards, and is a little faster with thousands
of tiny shards, which planning never makes (docs/performance.md). Ray's `ActorPool` gives shards to actors that have no
node yet. Ray's own retries of an actor task may be used up within two seconds, before Ray notices that the node is
gone.
"""

import time
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from infra.cluster.resources import ActorResources
from infra.cluster.size import cluster_limit
from infra.cluster.waiting import ClusterLost, HeadWatch
from infra.errors import JobError

_MAX_DEATHS = 3
"""Actor deaths to tolerate, per shard and in a row during start-up."""
_GROW_SECONDS = 2.0
"""Time between two checks of the cluster's size."""
_WAIT_SECONDS = 1.0
"""Longest wait for an actor before the head of the cluster is checked."""


@contextmanager
def map_shards(
    actor_class: type, arguments: tuple[Any, ...], shards: Sequence[Hashable], resources: ActorResources, *, what: str
) -> Iterator[Iterator[Any]]:
    """Map shards over actors. The block starts when the first actor is ready. After it, all actors are gone.

    Signals and timeouts interrupt the wait for results.

    Args:
        actor_class: class with the methods `ready()` and `work(shard)`. `work` may run twice for the same shard.
        arguments: arguments of its constructor.
        shards: what `work` takes for each shard, at least one. None is not allowed.
        resources: resources of each actor.
        what: name of the job, for messages.

    Yields:
        The results of `work`, in the order in which shards finish.

    Raises:
        JobError: an actor or a shard failed too often.
        ClusterLost: the head of the cluster is gone.
    """
    import ray

    pool = _Pool(actor_class, arguments, shards, resources)
    try:
        pool.await_first()
        yield pool.results()
    except ray.exceptions.RayError as error:
        pool.end()
        cause = getattr(error, "cause", None) or error
        text = (str(cause).strip() or type(cause).__name__).splitlines()[-1].rstrip(".")
        raise JobError(f"{what} failed: {text}. The finished shards are kept. Run it again.") from error
    except ClusterLost:
        raise  # without a head, a request to end the actors would block
    except BaseException:
        pool.end()
        raise
    else:
        pool.end()


class _Pool:
    def __init__(
        self, actor_class: type, arguments: tuple[Any, ...], shards: Sequence[Hashable], resources: ActorResources
    ) -> None:
        import ray

        actor = ray.remote(max_restarts=0, max_task_retries=0)(actor_class)
        self._actor = actor.options(**resources.options(has_gpus=cluster_limit().gpus > 0))
        self._arguments, self._resources = arguments, resources
        self._head = HeadWatch()
        self._left = deque(shards)
        # Actors by the reference to their pending call, and the shards that they work on.
        self._starting: dict[Any, Any] = {}
        self._working: dict[Any, tuple[Any, Hashable]] = {}
        self._answered: SimpleQueue[tuple[Any, Future[Any]]] = SimpleQueue()
        self._deaths: Counter[Hashable] = Counter()

    def await_first(self) -> None:
        """Wait until an actor is ready."""
        self._grow()
        while not self._working:
            self._next_results()

    def results(self) -> Iterator[Any]:
        """Yield what the actors return until every shard is done."""
        grown = time.monotonic()
        while self._working or self._left:
            yield from self._next_results()
            if not self._left:
                self._kill(self._starting.values())
                self._starting.clear()
            elif time.monotonic() - grown > _GROW_SECONDS:
                grown = time.monotonic()
                self._grow()

    def end(self) -> None:
        """Kill every actor."""
        self._kill([*self._starting.values(), *(actor for actor, _ in self._working.values())])

    def _grow(self) -> None:
        limit = cluster_limit()
        room = self._resources.room(cpus=limit.cpus, gpus=limit.gpus) - len(self._starting) - len(self._working)
        for _ in range(min(room, len(self._left) - len(self._starting))):
            actor = self._actor.remote(*self._arguments)
            self._starting[self._when_answered(actor.ready.remote())] = actor

    def _when_answered(self, reference: Any) -> Any:
        reference.future().add_done_callback(lambda outcome: self._answered.put((reference, outcome)))
        return reference

    def _next_results(self) -> list[Any]:
        """Wait for one actor, give it the next shard, and return its result if it has one."""
        import ray

        try:
            reference, outcome = self._answered.get(timeout=_WAIT_SECONDS)
        except Empty:
            self._head.check()
            return []
        is_start = reference in self._starting
        if not is_start and reference not in self._working:
            return []  # the actor was killed in the meantime
        actor, shard = (self._starting.pop(reference), None) if is_start else self._working.pop(reference)
        try:
            value = outcome.result()
        except ray.exceptions.RayActorError as error:
            self._replace(actor, shard, error)
            return []
        except BaseException:
            ray.kill(actor)
            raise
        self._give_next_shard(actor)
        if is_start:
            self._deaths[None] = 0
            return []
        return [value]

    def _give_next_shard(self, actor: Any) -> None:
        if not self._left:
            self._kill([actor])
            return
        shard = self._left.popleft()
        self._working[self._when_answered(actor.work.remote(shard))] = actor, shard

    def _replace(self, actor: Any, shard: Hashable, error: Any) -> None:
        """Replace an actor that died or whose node is unreachable. Its shard is next in line."""
        self._kill([actor])
        self._deaths[shard] += 1
        if self._deaths[shard] > _MAX_DEATHS or getattr(error, "actor_init_failed", False):
            raise error
        if shard is not None:
            self._left.appendleft(shard)
        self._grow()

    @staticmethod
    def _kill(actors: Any) -> None:
        import ray

        for actor in actors:
            ray.kill(actor)
