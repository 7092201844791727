"""Figures for Prometheus, through Ray: each node's agent serves what the node's processes count, and more of Ray's own.

Ray puts `ray_` before a name, and the process, the node's address and the session's name among the labels. What a
process counts is handed on every ten seconds and when it ends, unless it is killed by a signal. The agent keeps the
counters of processes that have ended: a sum over them only grows, as long as the node lives, and the number of its
series does, too, by one a process and set of labels (Ray 2.60).
"""

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_EXPORT_SECONDS = 1.0

_recorders: dict[str, Any] = {}
"""Ray's own, by name: of this process, so that a metric can be handed to others."""


@dataclass(frozen=True)
class Counter:
    """What only grows."""

    name: str
    """Ends in `_total`; with `ray_` before it, what Prometheus sees."""
    description: str
    labels: tuple[str, ...] = ()
    """Each with few values: the node's agent keeps them all."""

    def add(self, value: float, **labels: str) -> None:
        """Count; some microseconds, and nothing where there is no Ray. Not for each image."""
        if value > 0:
            with suppress(Exception):  # a figure is not worth a run
                _recorder(self, "Counter").inc(float(value), labels)


@dataclass(frozen=True)
class Gauge:
    """What goes up and down, of one process; it is gone some twenty seconds after the process."""

    name: str
    description: str
    labels: tuple[str, ...] = ()

    def set(self, value: float, **labels: str) -> None:
        """Say what it is now; some microseconds, and nothing where there is no Ray."""
        with suppress(Exception):
            _recorder(self, "Gauge").set(float(value), labels)


def _recorder(metric: Counter | Gauge, kind: str) -> Any:
    if metric.name not in _recorders:
        if "ray" not in sys.modules:  # so this is no worker, and need not spend the second that the import takes
            raise LookupError
        from ray.util import metrics

        _recorders[metric.name] = getattr(metrics, kind)(metric.name, metric.description, metric.labels)
    return _recorders[metric.name]


class Stages:
    """Seconds that each stage of a worker's work takes, exported once a second at most; stages may be threads' own."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._exported = time.monotonic()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count the block's seconds as the stage's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - began)

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Count as the stage's what it takes to make each item, and not what is done with them."""
        iterator = iter(items)
        while True:
            with self.of(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def export(self) -> None:
        """Hand on what is counted."""
        with self._lock:
            seconds, self._seconds = self._seconds, defaultdict(float)
            self._exported = time.monotonic()
        for stage, some in seconds.items():
            self._counter.add(some, stage=stage)

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds
            due = time.monotonic() - self._exported > _EXPORT_SECONDS
        if due:
            self.export()
