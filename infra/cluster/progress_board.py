"""Where work that runs in the cluster says how far it is and what it has to tell, and whoever wants to know looks.

One small actor a driver, found by name within the driver's namespace. Writers don't wait, and lose nothing but a line
of progress where the actor is gone; readers poll.
"""

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from infra.cluster.placement import on_this_node

_NAME = "progress"
_PART_SECONDS = 1.0
_LINES = 500
"""That are kept until they are taken; of more, the oldest are lost, and counted."""


_boards: dict[str, Any] = {}
"""This process's handle, by Ray job."""


@dataclass(frozen=True)
class LoggedLine:
    """What a worker logged."""

    level: int
    """As in `logging`."""
    where: str
    """Of the work, such as `rank 0`."""
    text: str
    at: float = field(compare=False, default_factory=time.time)
    """Seconds since 1970, by the clock of the worker."""


class _Board:
    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}
        self._lines: deque[LoggedLine] = deque(maxlen=_LINES)
        self._lost = 0
        self._parts: dict[str, int] = {}

    def post(self, entry: dict[str, Any]) -> None:
        self._latest = entry

    def read(self) -> dict[str, Any]:
        return self._latest

    def clear(self) -> None:
        self._latest, self._parts = {}, {}

    def advance(self, part: str, count: int) -> None:
        self._parts[part] = count

    def forget(self, part: str) -> None:
        self._parts.pop(part, None)

    def parts(self) -> dict[str, int]:
        return self._parts

    def log(self, line: LoggedLine) -> None:
        self._lost += len(self._lines) == _LINES
        self._lines.append(line)

    def take(self) -> tuple[dict[str, Any], list[LoggedLine], int]:
        taken = list(self._lines), self._lost
        self._lines.clear()
        self._lost = 0
        return self._latest, *taken


class ProgressBoard:
    """The board of this driver, started by whoever asks for it first."""

    def __init__(self) -> None:
        import ray

        # An actor ends when the process that started it has no handle left, so each process keeps the one it has.
        job = ray.get_runtime_context().get_job_id()
        if job not in _boards:
            _boards.clear()
            _boards[job] = ray.remote(_Board).options(name=_NAME, get_if_exists=True, **on_this_node()).remote()
        self._actor = _boards[job]

    def post(self, stage: str, text: str, share: float | None = None, **figures: Any) -> None:
        """Say where the work stands; returns at once.

        Args:
            stage: what is being done, by the name that readers know it by.
            text: the same, and how far, for people.
            share: of the stage's work that is done, 0 to 1, where it is known.
            figures: how far, in numbers and short texts.
        """
        self._actor.post.remote({"stage": stage, "text": text, "share": share} | figures)

    def clear(self) -> None:
        """Forget the latest entry, and what was said of parts; returns at once."""
        self._actor.clear.remote()

    def advance(self, part: str, count: int) -> None:
        """Say how much of a part of the work is done; returns at once."""
        self._actor.advance.remote(part, count)

    def forget(self, part: str) -> None:
        """Keep no longer what was said of a part; returns at once."""
        self._actor.forget.remote(part)

    def parts(self) -> dict[str, int]:
        """How much of each part is done, as far as it was said."""
        import ray

        parts: dict[str, int] = ray.get(self._actor.parts.remote(), timeout=10)
        return parts

    def log(self, line: LoggedLine) -> Any:
        """Hand on a line that was logged; returns at once, what Ray is to answer when the board has it."""
        return self._actor.log.remote(line)

    def read(self) -> dict[str, Any]:
        """The latest entry: its figures, stage, text and share; empty before the first."""
        import ray

        latest: dict[str, Any] = ray.get(self._actor.read.remote(), timeout=10)
        return latest

    def take(self) -> tuple[dict[str, Any], list[LoggedLine], int]:
        """The latest entry; the lines that were logged since they were last taken; and how many of them were lost."""
        import ray

        taken: tuple[dict[str, Any], list[LoggedLine], int] = ray.get(self._actor.take.remote(), timeout=10)
        return taken


class PartProgress:
    """Tells the board how much of a part of the work is done, once a second at most."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._told = time.monotonic()

    def at(self, count: int) -> None:
        """Say how much it is by now; without a board, nothing is said."""
        if time.monotonic() - self._told > _PART_SECONDS:
            self._told = time.monotonic()
            with suppress(Exception):  # a line of progress is not worth a run
                ProgressBoard().advance(self._part, count)
