"""Start Prefect's API and Ray at the same time, for a command."""

import importlib
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.environment import adapt_environment
from infra.importing import gc_paused
from infra.orchestration.history import set_aside_unusable_history
from infra.settings import Settings

_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",  # otherwise, Prefect's client prints that it sends usage data, and tries to send it
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "5",  # seconds between API calls with log lines
    # A call to Ray before or after the run is a bug, and must not start another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


_QUIET = {
    # The command prints errors itself. Prefect would print a traceback before that.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


@dataclass
class StartUp:
    """Seconds until each service was ready. Both start at the same time."""

    ray_seconds: float = 0.0
    prefect_seconds: float = 0.0


def prepare_environment(*, console: bool = False) -> None:
    """Set environment variables that Ray and Prefect read at import. Variables that the user has set stay.

    Args:
        console: whether Prefect logs to the terminal.
    """
    for name, value in (_ENVIRONMENT if console else _ENVIRONMENT | _QUIET).items():
        os.environ.setdefault(name, value)
    adapt_environment()
    if "error" in os.environ.get("PYTHONWARNINGS", ""):
        del os.environ["PYTHONWARNINGS"]  # a warning of some library must not end the command
        warnings.simplefilter("ignore")
    # Prefect's client needs no folder of its own. The home folder may be read-only.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")


def prepare_prefect(home: Path) -> None:
    """Make sure that Prefect has a folder of its own, and that a server in this folder can use its database.

    Args:
        home: folder of the server that starts here.
    """
    if not os.environ.get("PREFECT_HOME") and not _can_have(Path("~/.prefect").expanduser()):
        os.environ["PREFECT_HOME"] = str(home)
    if sentence := set_aside_unusable_history(home):
        sys.stderr.write(f"fmnist: {sentence}\n")


def _can_have(folder: Path) -> bool:
    return folder.exists() or os.access(folder.parent, os.W_OK)


@contextmanager
def services(settings: Settings, *, imports: Sequence[str] = ()) -> Iterator[StartUp]:
    """Provide Prefect's API and Ray while the block runs. Services that are started here end with it.

    Args:
        settings: address of Ray, and the state folder.
        imports: modules to import while Prefect's server starts in its own process.

    Raises:
        RequestError: a configured service can't be used.
        JobError: Prefect's server doesn't start.
    """
    from infra.orchestration.server import embedded_home, prefect_api

    prepare_prefect(embedded_home(settings.state_dir))
    started = time.perf_counter()
    start_up = StartUp()
    with prefect_api(settings.state_dir) as wait_for_prefect:
        from infra.cluster.connection import ray_connection

        with ray_connection(settings):
            from infra.cluster.progress_board import ProgressBoard

            start_up.ray_seconds = time.perf_counter() - started
            ProgressBoard()  # starts the board's process in the background
            with gc_paused():
                for module in imports:
                    importlib.import_module(module)
            wait_for_prefect()
            start_up.prefect_seconds = time.perf_counter() - started
            yield start_up
