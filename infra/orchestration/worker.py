"""A process worker of Prefect's work pool, which runs the deployments' flows as processes of this machine.

It ends with the process that started it, however that ends, and so do the flow runs that it started: they are told to
end, have some seconds to say so to Prefect, and are killed then.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

POOL = "fmnist"
_GRACE_SECONDS = 10
_QUERY_SECONDS = "1"
"""Between two looks for runs that are due; Prefect's 10 are for thousands of workers on one server."""
_EARLIER = timedelta(seconds=2)
"""From when the worker reads a run's state until it listens; a run can't be cancelled and retried in less."""
_OWN_FLOWS, _RUN_MODULE = "flows.deployed.", "flows.process"
PREFECT_SETTINGS = "FMNIST_PREFECT_SETTINGS"
"""Hands a run, as JSON, the Prefect settings of its deployment, which those of the worker would override."""


class Worker:
    """A worker's process, which can be started again; PREFECT_API_URL says for which server it works."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; what it and its flow runs print goes to the log."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "infra.orchestration.worker", str(os.getpid())],
                env=os.environ | {"PREFECT_WORKER_QUERY_SECONDS": _QUERY_SECONDS},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the process that started it
            )

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        """End the process and its flow runs."""
        if self._process is not None:
            end_with_runs(self._process.pid)
            self._process.wait()


@contextmanager
def prefect_worker(log: Path) -> Iterator[Worker]:
    """Run a worker for the length of the block."""
    log.write_bytes(b"")
    worker = Worker(log)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def end_with_runs(worker: int) -> None:
    """End a worker and the processes that it started; those that don't in some seconds are killed."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(worker)
        runs = root.children(recursive=True)
        for process in [*runs, root]:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs([*runs, root], timeout=_GRACE_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _work(owner: int) -> None:
    """Run the worker in this process until it is told to stop or its owner is gone."""
    from prefect.cli import app
    from prefect.runner import _flow_run_executor
    from prefect.workers import process

    own_runs: set[Any] = set()
    process.ProcessWorker.job_configuration = run_configuration(own_runs)
    process.load_flow_from_flow_run = flow_resolver(own_runs)  # type: ignore[attr-defined]
    _flow_run_executor.FlowRunCancellingObserver = cancelling_observer()  # type: ignore[attr-defined]
    sys.argv = ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "this-machine"]

    def stop_with_owner() -> None:
        while os.getppid() == owner:
            time.sleep(1)
        end_with_runs(os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=stop_with_owner, daemon=True).start()
    app()


def run_configuration(own_runs: set[Any]) -> Any:
    """How runs are started: as Prefect does it, but those of our own deployments in one process.

    Prefect starts a process that imports it only to fetch the flow's code, and then goes over into the one that runs
    it. Our flows are installed where their worker is.

    Args:
        own_runs: ids of the flow runs that are begun so are added to it.
    """
    from prefect.utilities.processutils import command_to_string
    from prefect.workers.process import ProcessJobConfiguration

    class RunConfiguration(ProcessJobConfiguration):
        def prepare_for_flow_run(self, flow_run: Any, deployment: Any = None, *args: Any, **kwargs: Any) -> None:
            entrypoint = (deployment and deployment.entrypoint) or ""
            if self.command is None and entrypoint.startswith(_OWN_FLOWS):
                self.command = command_to_string([sys.executable, "-m", _RUN_MODULE])
                settings = {name: value for name, value in self.env.items() if name.startswith("PREFECT_") and value}
                self.env[PREFECT_SETTINGS] = json.dumps(settings)
                self.env["PREFECT__FLOW_ENTRYPOINT"] = entrypoint  # so that it is not asked for
                own_runs.add(flow_run.id)
            super().prepare_for_flow_run(flow_run, deployment, *args, **kwargs)

    return RunConfiguration


def cancelling_observer() -> Any:
    """What tells a run's executor that the run is to be cancelled.

    Prefect's has the words of the last minute told again when it begins, and a run that is retried after a Cancel would
    be ended by the word of that one.
    """
    from prefect._internal.observers import FlowRunCancellingObserver

    class CancellingObserver(FlowRunCancellingObserver):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._not_before = datetime.now(UTC) - _EARLIER

        async def _consume_events(self) -> None:
            if (told := self._events_subscriber) is not None:
                self._events_subscriber = (  # type: ignore[assignment]
                    event async for event in told if event.occurred >= self._not_before
                )
            await super()._consume_events()  # type: ignore[no-untyped-call]

    return CancellingObserver


def flow_resolver(own_runs: set[Any]) -> Any:
    """What the worker gets a cancelled run's flow by, to call its hooks.

    Our flows have none, and the worker is spared to import them, Ray and all.
    """
    from prefect import Flow
    from prefect.flows import load_flow_from_flow_run

    async def resolve(flow_run: Any, *args: Any, **kwargs: Any) -> Any:
        if flow_run.id in own_runs:
            return Flow(lambda: None, name="without-hooks")
        return await load_flow_from_flow_run(flow_run, *args, **kwargs)

    return resolve


if __name__ == "__main__":
    _work(owner=int(sys.argv[1]))
