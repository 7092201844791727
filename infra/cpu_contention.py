"""Whether other programs want the CPUs that this one uses."""

import os
import sys
from contextlib import suppress
from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Of the thread that reads it: nanoseconds on a CPU, nanoseconds ready to run and without one, turns: proc(5)."""


class CpuContention:
    """How long the thread that asks has waited for a CPU."""

    def __init__(self) -> None:
        self._seen = _running_and_waiting()

    def share_waited(self) -> float:
        """Of the time in which the thread wanted a CPU since it asked before, the share without one; 1: not known."""
        seen = _running_and_waiting()
        running, waiting = (now - before for now, before in zip(seen, self._seen, strict=True))
        self._seen = seen
        return waiting / (running + waiting) if running > 0 else 1.0


def yield_cpu() -> None:
    """Have this thread run where a CPU would wait, and leave it when another thread wants it: SCHED_IDLE, sched(7).

    For good: it takes a privilege to come back. Where other programs use the CPUs, such a thread is put aside for long,
    also while it has Python's lock, for which all others of its process wait then.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _running_and_waiting() -> tuple[int, int]:
    try:
        running, waiting, _ = _SCHEDSTAT.read_text().split()
    except (OSError, ValueError):  # no Linux, or a kernel without these figures
        return 0, 0
    return int(running), int(waiting)
