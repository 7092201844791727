"""What a run from the command line needs besides itself: Prefect's API and Ray, started side by side."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infra.cluster.address import is_this_machine
from infra.errors import RequestError
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
def services(settings: Settings) -> Iterator[StartUp]:
    """Provide Prefect's API and a Ray cluster for the length of the block; what was started for it ends with it.

    Raises:
        RequestError: a service is configured that can't be used.
    """
    from infra.orchestration.server import prefect_api

    _check_that_nodes_reach_prefect(settings)
    began = time.perf_counter()
    started = StartUp()
    with prefect_api(settings.state_dir) as wait_for_prefect:
        from infra.cluster.connection import ray_connection

        with ray_connection(settings):
            from infra.cluster.progress_board import ProgressBoard

            started.ray_seconds = time.perf_counter() - began
            ProgressBoard()  # its process comes up while Prefect's server does
            wait_for_prefect()
            started.prefect_seconds = time.perf_counter() - began
            yield started


def _check_that_nodes_reach_prefect(settings: Settings) -> None:
    from prefect.settings import get_current_settings

    if settings.ray_address and not get_current_settings().api.url and not is_this_machine(settings.ray_address):
        raise RequestError(
            f"FMNIST_RAY_ADDRESS: the tasks that run at {settings.ray_address} report to Prefect, and would not reach "
            "a server of this machine alone. Name one that they reach with PREFECT_API_URL."
        )
