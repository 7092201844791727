"""Hold an actor at a step of its work, as a suspended process or a slow network does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import tasks.classification.actor
from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import ObjectStore
from infra.storage.tables.planning.plan import BatchPlan
from infra.storage.tables.records import ShardRecord
from tasks.classification.actor import ShardClassifier, ShardTask

STEPS = ("before it reads", "before it writes", "before its record")

_TIMEOUT_SECONDS = 60


class HeldActor:
    """An actor in a thread, which works on a shard and waits at one of the `STEPS`."""

    def __init__(self, store: ObjectStore, plan: BatchPlan, model: ModelVersion, task: ShardTask, *, step: str) -> None:
        self.plan, self.model = plan, model
        self._step, self._task = step, task
        self._actor = ShardClassifier(store.root, plan, model)
        self._resumed, self._reached = threading.Event(), threading.Event()
        self._result: list[ShardRecord] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        assert self._reached.wait(_TIMEOUT_SECONDS)

    def finish(self) -> ShardRecord:
        """Resume the actor, and return the record that it says counts."""
        self._resumed.set()
        self._thread.join(_TIMEOUT_SECONDS)
        [record] = self._result
        return record

    def wait_at(self, step: str) -> None:
        """Wait until `finish`, if this is the step to wait at."""
        if step == self._step:
            self._reached.set()
            assert self._resumed.wait(_TIMEOUT_SECONDS)

    def _work(self) -> None:
        _this_thread.actor = self
        try:
            self._result.append(self._actor.work(self._task))
        finally:
            self._reached.set()  # a shard that is already done has no such step


_this_thread = threading.local()


@contextmanager
def steps_can_be_held() -> Iterator[None]:
    """Let each `HeldActor` wait at its step. All other actors work as they always do."""
    real_read, real_create = tasks.classification.actor.read_shard, tasks.classification.actor.create_record

    def read_shard(*arguments: Any) -> Iterator[Any]:
        _wait_at("before it reads")
        batches = list(real_read(*arguments))
        _wait_at("before it writes")
        return iter(batches)

    def create_record(*arguments: Any) -> ShardRecord:
        _wait_at("before its record")
        return real_create(*arguments)

    replaced: dict[str, Callable[..., Any]] = {"read_shard": read_shard, "create_record": create_record}
    with mock.patch.multiple(tasks.classification.actor, **replaced):
        yield


def _wait_at(step: str) -> None:
    actor: HeldActor | None = getattr(_this_thread, "actor", None)
    if actor is not None:
        actor.wait_at(step)
