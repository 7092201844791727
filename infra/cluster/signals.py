"""Keep this process's signal handlers while Ray starts."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_sigterm_handler() -> Iterator[None]:
    """Restore this process's SIGTERM handler after the block. Ray replaces it when it starts.

    Prefect cancels a run by SIGTERM. With Ray's handler, the process would exit before it could report the cancel.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
