"""Start Prefect's API and Ray for a command, side by side."""

import importlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from infra.importing import gc_paused
from infra.settings import Settings

_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",  # or Prefect's client says, on the first run, that it sends usage data, and tries to
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "5",  # seconds; each batch of lines is a call of the API
    # A call to Ray before or after the run is a mistake, and not to be mended by starting another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass
class StartUp:
    """Seconds that starting took, side by side."""

    ray_seconds: float = 0.0
    prefect_seconds: float = 0.0


_QUIET = {
    # Errors are the command's own to tell; Prefect would print them as tracebacks first.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def prepare_environment(*, console: bool = False) -> None:
    """Set what Ray and Prefect read when they are first imported, where the user has not set it.

    Args:
        console: whether Prefect's own log goes to the terminal.
    """
    for name, value in (_ENVIRONMENT if console else _ENVIRONMENT | _QUIET).items():
        os.environ.setdefault(name, value)


@contextmanager
def services(settings: Settings, *, imports: Sequence[str] = ()) -> Iterator[StartUp]:
    """Provide Prefect's API and Ray for the length of the block. What is started here ends with the block.

    Args:
        settings: where Ray and the state folder are.
        imports: modules that the run needs. They are imported while Prefect's server starts in its own process.

    Raises:
        RequestError: a configured service can't be used.
        JobError: Prefect's server doesn't start.
    """
    from infra.orchestration.server import prefect_api

    began = time.perf_counter()
    started = StartUp()
    with prefect_api(settings.state_dir) as wait_for_prefect:
        from infra.cluster.connection import ray_connection

        with ray_connection(settings):
            from infra.cluster.progress_board import ProgressBoard

            started.ray_seconds = time.perf_counter() - began
            ProgressBoard()  # its process starts in the background, too
            with gc_paused():
                for module in imports:
                    importlib.import_module(module)
            wait_for_prefect()
            started.prefect_seconds = time.perf_counter() - began
            yield started
