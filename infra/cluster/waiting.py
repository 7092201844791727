"""Wait for Ray in a way that lets signals and timeouts through, and notice when the cluster's head is gone."""

import contextvars
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from infra.errors import JobError

R = TypeVar("R")

_CHECK_SECONDS = 5.0
_HEAD_TIMEOUT_SECONDS = 40.0
"""How long the head may be unreachable, for example while it restarts. Ray itself waits 60 s."""


class ClusterLost(JobError):
    """The head of the cluster is gone, and the run's actors with it."""


class HeadWatch:
    """Check that the cluster's head is reachable.

    Without it, Ray ends this process a minute after the head is gone, and hardly says why.
    """

    def __init__(self) -> None:
        import ray

        self._address: str = ray.get_runtime_context().gcs_address
        self._checked = self._last_seen = time.monotonic()

    def check(self) -> None:
        """Check the head, at most every five seconds.

        Raises:
            ClusterLost: the head has been unreachable for 40 seconds.
        """
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        try:
            host, port = self._address.rsplit(":", 1)
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CHECK_SECONDS).close()
        except OSError as error:
            if now - self._last_seen > _HEAD_TIMEOUT_SECONDS:
                raise ClusterLost(
                    f"The head of the Ray cluster at {self._address} can't be reached ({error.strerror or error}). "
                    "Start the cluster, then retry the run."
                ) from None
        else:
            self._last_seen = now


def call_interruptibly(blocking_call: Callable[[], R]) -> R:
    """Run a call that blocks inside Ray in a helper thread, and wait for it in Python.

    Inside `ray.get`, an exception that a signal handler or a timeout raises is held back until Ray answers. Here it
    ends the wait at once. The call itself ends when this process disconnects from Ray.

    Raises:
        ClusterLost: the cluster's head is gone.
        Exception: whatever the call raises.
    """
    outcome: Future[R] = Future()
    context = contextvars.copy_context()

    def call() -> None:
        try:
            outcome.set_result(context.run(blocking_call))
        except BaseException as error:  # noqa: BLE001 (the waiting thread raises it)
            outcome.set_exception(error)

    threading.Thread(target=call, name="blocked in Ray", daemon=True).start()
    head = HeadWatch()
    while not wait([outcome], timeout=1).done:
        head.check()
    return outcome.result()
