"""A process worker of Prefect's work pool, which runs the deployments' flows as processes of this machine.

It ends with the process that started it, however that ends, and so do the flow runs that it started: they are told to
end, have some seconds to say so to Prefect, and are killed then.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POOL = "fmnist"
_GRACE_SECONDS = 10
_QUERY_SECONDS = "1"
"""Between two looks for runs that are due; Prefect's 10 are for thousands of workers on one server."""


@contextmanager
def prefect_worker(log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a worker for the length of the block; PREFECT_API_URL says for which server.

    Args:
        log: what the worker and its flow runs print goes there.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.prefect_worker", str(os.getpid())],
            env=os.environ | {"PREFECT_WORKER_QUERY_SECONDS": _QUERY_SECONDS},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the process that started it
        )
    try:
        yield process
    finally:
        end_with_runs(process.pid)
        process.wait()


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

    sys.argv = ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "this-machine"]

    def stop_with_owner() -> None:
        while os.getppid() == owner:
            time.sleep(1)
        end_with_runs(os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=stop_with_owner, daemon=True).start()
    app()


if __name__ == "__main__":
    _work(owner=int(sys.argv[1]))
