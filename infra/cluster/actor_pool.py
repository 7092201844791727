"""Map shards of work over as many Ray actors as the cluster has room for.

A shard goes to an actor that is ready and free. If an actor dies, its shard goes to another one. A shard that killed
two actors while their nodes lived is handed out as a suspect. The pool grows with the cluster, and releases an actor as
soon as no shard is left for it.

Ray Data's actor pool takes three seconds longer to start over the same shards, and is a little faster with thousands
of tiny shards, which planning never makes (docs/performance.md). Ray's `ActorPool` gives shards to actors that have no
node yet. Ray's own retries of an actor task may be used up within two seconds, before Ray notices that the node is
gone.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from infra.cluster.placement import living_nodes
from infra.cluster.resources import ActorResources
from infra.cluster.size import cluster_limit
from infra.cluster.waiting import ClusterLost, HeadWatch
from infra.errors import JobError

_MAX_DEATHS = 3
"""Actor deaths to tolerate, per shard and in a row during start-up."""
_DEATHS_OF_A_SUSPECT = 2
"""Deaths on living nodes after which a shard is a suspect."""
_GROW_SECONDS = 2.0
"""Time between two checks of the cluster's size."""
_WAIT_SECONDS = 1.0
"""Longest wait for an actor before the head of the cluster is checked."""


@contextmanager
def map_shards(
    actor_class: type,
    arguments: tuple[Any, ...],
    shards: Sequence[Any],
    resources: ActorResources,
    *,
    what: str,
    describe: Callable[[Any], str] = lambda shard: f"shard {shard}",
    as_suspect: Callable[[Any], Any] = lambda shard: shard,
) -> Iterator[Iterator[Any]]:
    """Map shards over actors. The block starts when the first actor is ready. After it, all actors are gone.

    Signals and timeouts interrupt the wait for results.

    Args:
        actor_class: class with the methods `ready()`, which returns the id of the actor's node, and `work(shard)`,
            which may run twice for the same shard.
        arguments: arguments of its constructor.
        shards: what `work` takes for each shard, at least one.
        resources: resources of each actor.
        what: name of the job, for messages.
        describe: names a shard and its inputs, for messages. Called when the shard fails.
        as_suspect: changes what `work` takes for a shard that killed two actors while their nodes lived.

    Yields:
        The results of `work`, in the order in which shards finish.

    Raises:
        JobError: an actor or a shard failed too often. The text names the shard.
        ClusterLost: the head of the cluster is gone.
    """
    import ray

    pool = _Pool(actor_class, arguments, shards, resources, as_suspect)
    try:
        pool.await_first()
        yield pool.results()
    except _ShardFailed as failure:
        pool.end()
        raise JobError(_message(what, _named(failure.shard, describe), failure.error)) from failure.error
    except ray.exceptions.RayError as error:
        pool.end()
        raise JobError(_message(what, "", error)) from error
    except ClusterLost:
        raise  # without a head, a request to end the actors would block
    except BaseException:
        pool.end()
        raise
    else:
        pool.end()


def _message(what: str, where: str, error: Exception) -> str:
    """Say what failed, at which shard, and why."""
    import ray

    cause = getattr(error, "cause", None) or error
    lines = (str(cause).strip() or type(cause).__name__).splitlines()
    text = lines[0 if isinstance(cause, ray.exceptions.OutOfMemoryError) else -1].rstrip(".")
    # Ray's error also shows the notes of its cause as its own.
    notes = dict.fromkeys([*getattr(cause, "__notes__", []), *getattr(error, "__notes__", [])])
    return " ".join([f"{what} failed{where}: {text}.", *notes, "The finished shards are kept. Run it again."])


def _named(shard: Any, describe: Callable[[Any], str]) -> str:
    with suppress(Exception):  # the store may be what failed
        return f" at {describe(shard)}"
    return f" at {shard}"


class _ShardFailed(Exception):
    """A shard failed for good."""

    def __init__(self, shard: Any, error: Exception) -> None:
        super().__init__(str(error))
        self.shard, self.error = shard, error


@dataclass
class _Shard:
    """A shard, and what happened to the actors that worked on it."""

    value: Any
    deaths: int = 0
    nodes: list[str] = field(default_factory=list)
    """Nodes on which an actor died, without Ray saying that it was due to the node."""

    def is_suspect(self) -> bool:
        """Whether the shard killed actors. A node that is gone by now took its actors with it."""
        if len(self.nodes) < _DEATHS_OF_A_SUSPECT:
            return False
        living = living_nodes()
        return sum(node in living for node in self.nodes) >= _DEATHS_OF_A_SUSPECT


@dataclass(frozen=True)
class _Actor:
    """An actor that is ready."""

    handle: Any
    node: str | None
    """ID of its node."""


class _Pool:
    def __init__(
        self,
        actor_class: type,
        arguments: tuple[Any, ...],
        shards: Sequence[Any],
        resources: ActorResources,
        as_suspect: Callable[[Any], Any],
    ) -> None:
        import ray

        actor = ray.remote(max_restarts=0, max_task_retries=0)(actor_class)
        self._actor = actor.options(**resources.options(has_gpus=cluster_limit().gpus > 0))
        self._arguments, self._resources = arguments, resources
        self._head = HeadWatch()
        self._as_suspect = as_suspect
        self._left = deque(_Shard(shard) for shard in shards)
        # Actors by the reference to their pending call, and the shards that they work on.
        self._starting: dict[Any, Any] = {}
        self._working: dict[Any, tuple[_Actor, _Shard]] = {}
        self._answered: SimpleQueue[tuple[Any, Future[Any]]] = SimpleQueue()
        self._deaths_at_start = 0

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
        self._kill([*self._starting.values(), *(actor.handle for actor, _ in self._working.values())])

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
        if reference in self._starting:
            self._started(self._starting.pop(reference), outcome)
            return []
        if reference not in self._working:
            return []  # the actor was killed in the meantime
        actor, shard = self._working.pop(reference)
        try:
            value = outcome.result()
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            self._replace(actor, shard, error)
            return []
        except Exception as error:
            self._kill([actor.handle])
            raise _ShardFailed(shard.value, error) from error
        self._give_next_shard(actor)
        return [value]

    def _started(self, handle: Any, outcome: "Future[Any]") -> None:
        import ray

        try:
            node = outcome.result()
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            self._kill([handle])
            self._deaths_at_start += 1
            if self._deaths_at_start > _MAX_DEATHS or getattr(error, "actor_init_failed", False):
                raise
            self._grow()
            return
        except BaseException:
            self._kill([handle])
            raise
        self._deaths_at_start = 0
        self._give_next_shard(_Actor(handle, node))

    def _give_next_shard(self, actor: _Actor) -> None:
        if not self._left:
            self._kill([actor.handle])
            return
        shard = self._left.popleft()
        value = self._as_suspect(shard.value) if shard.is_suspect() else shard.value
        self._working[self._when_answered(actor.handle.work.remote(value))] = actor, shard

    def _replace(self, actor: _Actor, shard: _Shard, error: Any) -> None:
        """Replace an actor that died or whose node is unreachable. Its shard is next in line."""
        import ray

        self._kill([actor.handle])
        shard.deaths += 1
        is_unreachable = isinstance(error, ray.exceptions.ActorUnavailableError)
        if actor.node and not is_unreachable and not getattr(error, "preempted", False):
            shard.nodes.append(actor.node)
        if shard.deaths > _MAX_DEATHS:
            error.add_note(f"{shard.deaths} workers died of this shard.")
            raise _ShardFailed(shard.value, error) from error
        self._left.appendleft(shard)
        self._grow()

    @staticmethod
    def _kill(actors: Any) -> None:
        import ray

        for actor in actors:
            ray.kill(actor)
