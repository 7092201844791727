"""Collect progress and log lines from the cluster in one place, for the flow and the terminal to read.

Each driver has one board: a small actor that is found by name within the driver's namespace. Writers never wait. If the
actor is gone, only progress and log lines are lost. Readers poll.
"""

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from infra.cluster.placement import on_this_node

_NAME = "progress"
_SHARD_SECONDS = 1.0
"""Minimum time between two reports on one shard."""
_MAX_LINES = 500
"""Log lines that the board holds until they are taken. Beyond that, it drops the oldest lines and counts them."""
_READ_TIMEOUT_SECONDS = 10

_boards: dict[str, Any] = {}
"""This process's handle of the board, by Ray job."""


@dataclass(frozen=True)
class LoggedLine:
    """A line that a worker logged."""

    level: int
    """Level as in `logging`."""
    source: str
    """Work that logged the line, such as `rank 0`."""
    text: str
    logged_at: float = field(compare=False, default_factory=time.time)
    """Unix time in seconds, by the worker's clock."""


class _Board:
    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}
        self._lines: deque[LoggedLine] = deque(maxlen=_MAX_LINES)
        self._lost = 0
        self._shards: dict[str, int] = {}

    def post(self, entry: dict[str, Any]) -> None:
        self._latest = entry

    def read(self) -> dict[str, Any]:
        return self._latest

    def clear(self) -> None:
        self._latest, self._shards = {}, {}

    def advance(self, shard: str, images: int) -> None:
        self._shards[shard] = images

    def forget(self, shard: str) -> None:
        self._shards.pop(shard, None)

    def shards(self) -> dict[str, int]:
        return self._shards

    def log(self, line: LoggedLine) -> None:
        self._lost += len(self._lines) == _MAX_LINES
        self._lines.append(line)

    def take(self) -> tuple[dict[str, Any], list[LoggedLine], int]:
        taken = list(self._lines), self._lost
        self._lines.clear()
        self._lost = 0
        return self._latest, *taken


class ProgressBoard:
    """A client of this driver's board. The first client starts the board's actor."""

    def __init__(self) -> None:
        import ray

        # An actor ends when the process that started it has no handle left, so each process keeps the one it has.
        job = ray.get_runtime_context().get_job_id()
        if job not in _boards:
            _boards.clear()
            _boards[job] = ray.remote(_Board).options(name=_NAME, get_if_exists=True, **on_this_node()).remote()
        self._actor = _boards[job]

    def post(self, stage: str, text: str, share: float | None = None, **figures: Any) -> None:
        """Post the current progress, without waiting for the board.

        Args:
            stage: name of the current stage.
            text: stage and progress as text for people.
            share: share of the stage's work that is done, 0 to 1. None if it is unknown.
            figures: further numbers and short texts of the entry.
        """
        self._actor.post.remote({"stage": stage, "text": text, "share": share} | figures)

    def clear(self) -> None:
        """Clear the latest entry and all shards, without waiting for the board."""
        self._actor.clear.remote()

    def advance(self, shard: str, images: int) -> None:
        """Report how many images of a shard are done, without waiting for the board."""
        self._actor.advance.remote(shard, images)

    def forget(self, shard: str) -> None:
        """Remove a shard, without waiting for the board."""
        self._actor.forget.remote(shard)

    def shards(self) -> dict[str, int]:
        """Return the reported images of each shard, by the shard's name."""
        import ray

        shards: dict[str, int] = ray.get(self._actor.shards.remote(), timeout=_READ_TIMEOUT_SECONDS)
        return shards

    def log(self, line: LoggedLine) -> Any:
        """Add a log line, without waiting for the board. Returns a reference that is ready once the board has it."""
        return self._actor.log.remote(line)

    def read(self) -> dict[str, Any]:
        """Return the latest entry: its stage, text, share and figures. It is empty before the first post."""
        import ray

        latest: dict[str, Any] = ray.get(self._actor.read.remote(), timeout=_READ_TIMEOUT_SECONDS)
        return latest

    def take(self) -> tuple[dict[str, Any], list[LoggedLine], int]:
        """Return the latest entry, the log lines since the last call, and the number of lines that were dropped."""
        import ray

        taken: tuple[dict[str, Any], list[LoggedLine], int] = ray.get(
            self._actor.take.remote(), timeout=_READ_TIMEOUT_SECONDS
        )
        return taken


class ShardProgress:
    """Reports the progress of one shard to the board, at most once a second."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._reported = time.monotonic()

    def report(self, images: int) -> None:
        """Report how many images are done by now. Does nothing without a board."""
        if time.monotonic() - self._reported > _SHARD_SECONDS:
            self._reported = time.monotonic()
            with suppress(Exception):  # a lost progress report must not fail the run
                ProgressBoard().advance(self._shard, images)
