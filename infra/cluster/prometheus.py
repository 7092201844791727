"""Export Prometheus metrics through Ray. Each node's agent serves them, next to Ray's own.

Ray puts `ray_` in front of a name, and adds labels for the process, the node's address and the session. A process sends
its metrics to the agent every ten seconds and when it ends, unless a signal kills it.

The agent keeps the counters of processes that have ended. While the node lives, a sum over them only grows. So does the
number of time series, by one per process and set of labels (Ray 2.60).
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
"""Minimum time between two exports of a stage timer."""

_recorders: dict[str, Any] = {}
"""This process's Ray metrics, by name. They are made on first use, so that `Counter` and `Gauge` can be pickled."""


@dataclass(frozen=True)
class Counter:
    """A metric that only grows."""

    name: str
    """Name that ends in `_total`. Prometheus shows it with `ray_` in front."""
    description: str
    labels: tuple[str, ...] = ()
    """Label names. Each label may take only a few values, because the node's agent keeps a time series for each."""

    def add(self, value: float, **labels: str) -> None:
        """Add to the counter. Takes a few microseconds, so don't call it for each image. Does nothing without Ray."""
        if value > 0:
            with suppress(Exception):  # a lost metric must not fail the run
                _recorder(self, "Counter").inc(float(value), labels)


@dataclass(frozen=True)
class Gauge:
    """A metric of one process that goes up and down. It disappears about 20 s after the process."""

    name: str
    description: str
    labels: tuple[str, ...] = ()

    def set(self, value: float, **labels: str) -> None:
        """Set the current value. Takes a few microseconds. Does nothing without Ray."""
        with suppress(Exception):  # a lost metric must not fail the run
            _recorder(self, "Gauge").set(float(value), labels)


def _recorder(metric: Counter | Gauge, kind: str) -> Any:
    if metric.name not in _recorders:
        if "ray" not in sys.modules:  # this process is not a worker, so save the second that the import takes
            raise LookupError
        from ray.util import metrics

        _recorders[metric.name] = getattr(metrics, kind)(metric.name, metric.description, metric.labels)
    return _recorders[metric.name]


class StageTimer:
    """Counts the seconds that each stage of a worker's work takes. Threads may share it."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._exported = time.monotonic()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the seconds that the block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - started)

    def measure_each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count the seconds that the iterable takes to make them."""
        iterator = iter(items)
        while True:
            with self.measure(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def export(self) -> None:
        """Add the seconds since the last export to the counter. This happens once a second without a call, too."""
        with self._lock:
            seconds, self._seconds = self._seconds, defaultdict(float)
            self._exported = time.monotonic()
        for stage, elapsed in seconds.items():
            self._counter.add(elapsed, stage=stage)

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds
            due = time.monotonic() - self._exported > _EXPORT_SECONDS
        if due:
            self.export()
