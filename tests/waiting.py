"""Waiting for what takes as long as the machine takes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 240
"""After which something is held for broken for which the project promises no limit.

A slow machine under load takes a minute for what a quick one does in five seconds; where all goes well, nobody waits.
"""


def until(found: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Ask again and again until the answer is true, and return it.

    Args:
        found: asked some times a second.
        seconds: after which it is asked no more; named where this limit is what is tested.
    """
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, f"waited in vain for {seconds:.0f} s; the last answer was {answer!r}"
        time.sleep(0.3)
    return answer
