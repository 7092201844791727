"""Run a Prefect worker, which runs the deployments' flows as processes on this machine.

The worker and its flow runs end with the process that started the worker. They are terminated, and killed if they don't
end within ten seconds. In that time, flow runs report their state to Prefect.
"""

import asyncio
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from infra.orchestration.child_process import ChildProcess, parent_is_gone
from infra.packages import child_environment

POOL = "fmnist"
_GRACE_SECONDS = 10
_QUERY_SECONDS = "1"
"""Time between two queries for due runs. Prefect's default of 10 s is for servers with thousands of workers."""


class Worker(ChildProcess):
    """The process of a worker for the server that PREFECT_API_URL names."""

    def stop(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """End the worker and its flow runs."""
        if self.pid is not None:
            end_with_runs(self.pid, grace_seconds)
            self.wait()


@contextmanager
def prefect_worker(log: Path) -> Iterator[Worker]:
    """Run a worker while the block runs. Its output and that of its flow runs go to the log."""
    log.write_bytes(b"")
    command = [sys.executable, "-m", "infra.orchestration.worker", str(os.getpid())]
    worker = Worker(command, child_environment() | {"PREFECT_WORKER_QUERY_SECONDS": _QUERY_SECONDS}, log)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def end_with_runs(worker: int, grace_seconds: float = _GRACE_SECONDS) -> None:
    """Terminate a worker and the processes that it started, and kill those that don't end in time."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(worker)
        runs = root.children(recursive=True)
        for process in [*runs, root]:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs([*runs, root], timeout=grace_seconds)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@cache
def engine_worker() -> Any:
    """Return a process worker that starts every flow run directly in infra/orchestration/engine.py.

    By default, Prefect starts one process that fetches the flow's code, and a second one that runs it. This imports
    Prefect twice. Our flows are installed next to the worker, so there is nothing to fetch.
    """
    import prefect.settings
    from prefect.utilities.processutils import command_to_string
    from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

    class EngineConfiguration(ProcessJobConfiguration):
        def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
            if self.command is None:
                self.command = command_to_string([sys.executable, "-m", "infra.orchestration.engine"])
            super().prepare_for_flow_run(*args, **kwargs)

    warnings.filterwarnings("ignore", message="Type 'EngineWorker'", category=UserWarning)  # it replaces its parent

    class EngineWorker(ProcessWorker):
        job_configuration = EngineConfiguration

        async def run(self, flow_run: Any, configuration: Any, task_status: Any = None) -> Any:
            # With a command, Prefect lets the worker's settings override the deployment's. Make both equal.
            found = {name: getattr(prefect.settings, name, None) for name in configuration.env if _is_setting(name)}
            updates = {setting: configuration.env[name] for name, setting in found.items() if setting is not None}
            with prefect.settings.temporary_settings(updates):
                return await super().run(flow_run, configuration, task_status)

    return EngineWorker


def _is_setting(name: str) -> bool:
    return name.startswith("PREFECT_") and not name.startswith("PREFECT__")


def _work(owner: int) -> None:
    """Run the worker in this process until it is stopped or its owner is gone."""
    from prefect.utilities.processutils import setup_signal_handlers_worker

    from infra.upstream.prefect_cancelling_observer import ignore_earlier_cancels

    ignore_earlier_cancels()
    threading.Thread(target=_stop_with, args=[owner], daemon=True).start()
    setup_signal_handlers_worker(os.getpid(), "the process worker", print)
    with suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(engine_worker()(work_pool_name=POOL, name="this-machine").start())


def _stop_with(owner: int) -> None:
    while not parent_is_gone(owner):
        time.sleep(1)
    end_with_runs(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _work(owner=int(sys.argv[1]))
