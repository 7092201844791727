"""Prefect's API for a run on one machine: the configured server, or one that is started for the run.

Prefect can start a temporary server by itself. It allows 20 s for that, which the migrations of a new database exceed
on a fresh machine. This server is started beside Ray and is waited for as long as it lives. It listens on a socket that
is bound before its start, so no other process can take its port. It ends with the process that started it.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.errors import JobError, RequestError
from infra.orchestration.child_process import ChildProcess, ends_with

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
class Server(ChildProcess):
    """A server's process, which can be started again on the socket that it had.

    Requests that arrive before the server is up wait in the socket's queue.
    """

    url: str = ""
    """URL of its API."""

    def wait_until_healthy(self) -> str:
        """Wait until the server answers, and return its URL.

        Raises:
            JobError: the server ended or took too long.
        """
        import httpx

        deadline = time.monotonic() + _START_SECONDS
        while not self.has_ended() and time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return self.url
            except httpx.HTTPError:
                time.sleep(0.05)
        ending = self.log.read_text(errors="replace")[-2000:]
        raise JobError(f"Prefect's embedded server did not start. The end of {self.log}:\n{ending}")


_FOR_ONE_RUN = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",  # as Prefect sets it for its own temporary server: no services for schedules
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",  # automations belong to a server that stays
}
_FOR_SCHEDULES = {
    # By default, leases are in memory and are lost with the server. What they protect would then stay locked.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # The server prepares its UI in this folder. The default is a folder among the installed packages.
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
        server = Server(command, environment, log, [listener.fileno()], url)
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
    from infra.upstream.prefect_sqlite_transactions import begin_transactions_as_writers

    if owner is not None:
        threading.Thread(target=_stop_with, args=[owner], daemon=True).start()
    begin_transactions_as_writers()
    level = os.environ.get("PREFECT_SERVER_LOGGING_LEVEL", "error").lower()  # info: a line a request
    listener = socket.create_server((host, port)) if descriptor is None else socket.socket(fileno=descriptor)
    with listener, access_settings(listener.getsockname()[1]) as addresses:
        app = restrict_access(create_app(final=True), addresses)
        uvicorn.run(app, fd=listener.fileno(), log_level=level, lifespan="on")


def _stop_with(owner: int) -> None:
    while not ends_with(owner):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(1)


if __name__ == "__main__":
    import cyclopts

    cyclopts.run(_serve)
