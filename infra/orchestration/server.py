"""Prefect's API for a run on one machine: a server of the run's own, unless one is configured.

Prefect can start a temporary server by itself, but gives it 20 s, which the migrations of a new database outlast, and
every worker process would start another one on the same file. This one is started beside Ray, is waited for as long as
it lives, and is known to every worker by its URL. It listens on a socket that is bound before it starts (so there is no
port to lose to another process), and ends with the process that started it, however that ends.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from infra.errors import JobError, RequestError

_START_SECONDS = 180

_own_urls: set[str] = set()


@contextmanager
def prefect_api(state_dir: Path) -> Iterator[Callable[[], str]]:
    """Provide Prefect's API and name it to this process, and to those it starts, for the length of the block.

    The server comes up in the background; do other things meanwhile.

    Args:
        state_dir: the embedded server keeps its database in the folder `prefect` below it.

    Yields:
        A function that waits until the API answers, and returns its URL: the one that Prefect's settings name, else
        that of a server started here. It raises RequestError where the former does not answer, and JobError, with the
        end of the log, where the latter does not come up.

    Raises:
        RequestError: the folder can't be written.
    """
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    configured = get_current_settings().api.url
    if configured:
        yield lambda: _answering(configured)
        return
    with _server(state_dir / "prefect") as server, temporary_settings({PREFECT_API_URL: server.url}):
        os.environ["PREFECT_API_URL"] = server.url
        _own_urls.add(server.url)
        try:
            yield server.wait_until_healthy
        finally:
            APILogHandler().flush()  # or Prefect would try at exit, when the server is gone
            del os.environ["PREFECT_API_URL"]


def _answering(url: str) -> str:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise RequestError(
            f"PREFECT_API_URL: no Prefect server answers at {url} ({str(error) or type(error).__name__}). Start it, "
            "correct the address, or unset it to have one started for the run."
        )
    return url


def is_for_this_run_alone() -> bool:
    """Whether Prefect's API is that of a server that this process started for its own run."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url in _own_urls


@contextmanager
def prefect_server(state_dir: Path, port: int) -> Iterator["Server"]:
    """Run a server with its schedules, its automations and its web pages for the length of the block.

    Args:
        state_dir: it keeps its database in the folder `serve` below it.
        port: to listen on, of this machine alone.

    Yields:
        The server, which comes up in the background.

    Raises:
        RequestError: the folder can't be written, or the port is taken.
    """
    with _server(state_dir / "serve", port) as server:
        yield server


@dataclass
class Server:
    """A server's process, which can be started again on the socket that it had."""

    url: str
    """Of its API."""
    log: Path
    _command: list[str]
    _environment: dict[str, str]
    _listener: socket.socket
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start the process. Requests that come before it is up wait in the socket's queue."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                pass_fds=[self._listener.fileno()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the run, which ends its server in its own time
            )

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_until_healthy(self) -> str:
        """Wait until it answers, and return its URL.

        Raises:
            JobError: it ended, or took too long.
        """
        import httpx

        deadline = time.monotonic() + _START_SECONDS
        while not self.has_ended() and time.monotonic() < deadline:
            # The socket listens before the server does, so a request waits in its queue until the server answers.
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return self.url
            except httpx.HTTPError:
                time.sleep(0.05)
        ending = self.log.read_text(errors="replace")[-2000:]
        raise JobError(f"Prefect's embedded server did not start. The end of {self.log}:\n{ending}")


_EPHEMERAL = "PREFECT__SERVER_EPHEMERAL"
_FOR_ONE_RUN = {
    "PREFECT_UI_ENABLED": "0",
    _EPHEMERAL: "1",  # what Prefect sets for its own temporary server: no services for schedules
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",  # of automations, which are a server's that stays
}
_FOR_SCHEDULES = {
    # In memory, which is the default, leases are lost with the server, and what they held is held up for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Its pages are prepared in this folder; where it is not named, among the installed packages.
    "PREFECT_UI_STATIC_DIRECTORY": "{home}/ui",
}


@contextmanager
def _server(home: Path, port: int | None = None) -> Iterator[Server]:
    log = home / "server.log"
    try:
        home.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    except OSError as error:
        raise RequestError(
            f"FMNIST_STATE_DIR: {home} can't be written: {error.strerror}. Make it writable, or name another folder."
        ) from None
    environment = {
        **os.environ,
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(home)),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT__SERVER_FINAL": "1",
        **{name: value.format(home=home) for name, value in (_FOR_SCHEDULES if port else _FOR_ONE_RUN).items()},
    }
    with _listener(port) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        options = [f"--descriptor={listener.fileno()}", f"--owner={os.getpid()}"]
        command = [sys.executable, "-m", "infra.orchestration.server", *options]
        server = Server(url, log, command, environment, listener)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _listener(port: int | None) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port or 0), backlog=128)
    except OSError as error:
        raise RequestError(
            f"Port {port} can't be listened on ({error.strerror}). Stop what has it, or name another by --port."
        ) from None


def _serve(
    *, host: str = "127.0.0.1", port: int = 4200, descriptor: int | None = None, owner: int | None = None
) -> None:
    """Run Prefect's server in this process until it is stopped.

    In browsers, only the server's own pages may call it: see infra/orchestration/access.py.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        descriptor: Socket that already listens, in place of host and port.
        owner: Parent process. The server stops when that process ends.
    """
    import uvicorn
    from prefect.server.api.server import create_app

    from infra.orchestration.access import access_settings, restrict_access

    if owner is not None:
        threading.Thread(target=_stop_with, args=[owner], daemon=True).start()
    have_writers_wait()
    if os.environ.get(_EPHEMERAL):
        calm_background_worker()
    level = os.environ.get("PREFECT_SERVER_LOGGING_LEVEL", "error").lower()  # info: a line a request
    listener = socket.create_server((host, port)) if descriptor is None else socket.socket(fileno=descriptor)
    with listener, access_settings(listener.getsockname()[1]) as addresses:
        app = restrict_access(create_app(final=True), addresses)
        uvicorn.run(app, fd=listener.fileno(), log_level=level, lifespan="on")


def _stop_with(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(1)


def have_writers_wait() -> None:
    """Have each transaction wait, from its beginning, for those that write.

    Prefect begins most of them as readers. SQLite refuses what such a one writes after another has written, at once and
    whatever its patience; the server answers 503, and Prefect's client asks again two seconds later.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def begin_as_writer(self: Any, session: Any, with_for_update: bool = True) -> Any:  # noqa: ARG001
        return begin(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_as_writer  # type: ignore[method-assign]


_BACKGROUND_SECONDS = 2.0


def calm_background_worker() -> None:
    """Have the server look for background work less often than four times a second, for which a single run has no use.

    And not ten times a second whether such work is to be cancelled, which Prefect never asks for. On a machine whose
    CPUs train, an idle server takes a fifth of what it would, without automations.
    """
    from docket import Worker
    from prefect.server.api import background_workers

    class CalmWorker(Worker):
        def __init__(self, docket: Any) -> None:
            seconds = timedelta(seconds=_BACKGROUND_SECONDS)
            super().__init__(docket, minimum_check_interval=seconds, scheduling_resolution=seconds)

        async def _cancellation_listener(self) -> None:
            if self._processing_session is not None:
                self._processing_session.cancellation_ready.set()
                await self._processing_session.stopping.wait()

    background_workers.Worker = CalmWorker  # type: ignore[attr-defined, assignment]


if __name__ == "__main__":
    import cyclopts

    cyclopts.run(_serve)
