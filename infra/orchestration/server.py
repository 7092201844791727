"""Provide Prefect's API: from the configured server, or from one that is started here.

Prefect can start a temporary server by itself. It allows 20 s for that, which the migrations of a new database exceed
on a fresh machine. The server here starts next to Ray, and gets the time that it needs. It listens on a socket that is
bound before its start, so no other process can take its port. It ends with the process that started it.
"""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.environment import variables
from infra.errors import JobError, RequestError
from infra.orchestration.child_process import ChildProcess, parent_is_gone
from infra.orchestration.history import locked, users_database
from infra.packages import child_environment

_START_SECONDS = 180

_embedded_urls: set[str] = set()


@contextmanager
def prefect_api(state_dir: Path) -> Iterator[Callable[[], str]]:
    """Provide Prefect's API to this process, and to those that it starts, while the block runs.

    If PREFECT_API_URL is not set, an embedded server starts in the background, while you do other work.

    Args:
        state_dir: folder in which the embedded server keeps its database, below `prefect`.

    Yields:
        A function that waits until the API answers, and returns its URL. It raises RequestError if the configured
        server doesn't answer, and JobError, with the end of the log, if the embedded server doesn't start.

    Raises:
        RequestError: the folder can't be written.
    """
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import get_current_settings

    configured = get_current_settings().api.url
    if configured:
        yield lambda: _answering(configured)
        return
    with _server(embedded_home(state_dir)) as server, client_settings(server.url):
        _embedded_urls.add(server.url)
        try:
            yield server.wait_until_healthy
        finally:
            APILogHandler().flush()  # otherwise, Prefect would flush at exit, after the server has ended


@contextmanager
def client_settings(url: str) -> Iterator[None]:
    """Point Prefect's client to a server that was started here, in this process and in those that it starts.

    If PREFECT_SERVER_API_AUTH_STRING is set, the server asks for this password, so the client gets the same one.

    Args:
        url: URL of the server's API.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, get_current_settings, temporary_settings

    settings: dict[Any, str] = {PREFECT_API_URL: url}
    if password := get_current_settings().server.api.auth_string:
        settings[PREFECT_API_AUTH_STRING] = password.get_secret_value()
    with variables({setting.name: value for setting, value in settings.items()}), temporary_settings(settings):
        yield


def embedded_home(state_dir: Path) -> Path:
    """Return the folder of the embedded server."""
    return state_dir / "prefect"


def permanent_home(state_dir: Path) -> Path:
    """Return the folder of the server with schedules, automations and the UI."""
    return state_dir / "serve"


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


def uses_embedded_server() -> bool:
    """Return whether Prefect's API comes from a server that this process started for its own run."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url in _embedded_urls


@contextmanager
def prefect_server(state_dir: Path, port: int) -> Iterator["Server"]:
    """Run a server with schedules, automations and the UI while the block runs.

    Args:
        state_dir: folder in which the server keeps its database, below `serve`.
        port: port to listen on, on 127.0.0.1.

    Yields:
        The server, which starts in the background.

    Raises:
        RequestError: the folder can't be written, or the port is in use.
    """
    with _server(permanent_home(state_dir), port) as server:
        yield server


@dataclass
class Server(ChildProcess):
    """The process of a server. It can be restarted on the same socket.

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
        ended = f"ended ({_last_error(self.log)})" if self.has_ended() else f"did not answer within {_START_SECONDS} s"
        address = users_database(self.log.parent)
        advice = f" Check the database that {address} names." if address else ""
        raise JobError(f"Prefect's server {ended}.{advice} Its log is {self.log}.")


def _last_error(log: Path) -> str:
    """Return the last line of a log that names an exception, or else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Refused|Interrupt)\b", line)]
    return (errors or lines or ["its log is empty"])[-1][:300]


_FOR_ONE_RUN = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",  # no scheduling services, as in Prefect's own temporary server
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",  # only a permanent server has automations
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
            f"FMNIST_STATE_DIR: {home} can't be written: {error.strerror}. Make it writable, or set another folder."
        ) from None
    environment = {
        **child_environment(),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(home),
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
            f"Port {port} can't be used ({error.strerror}). Stop the process that uses it, or choose another --port."
        ) from None


def _serve(
    *, host: str = "127.0.0.1", port: int = 4200, descriptor: int | None = None, owner: int | None = None
) -> None:
    """Run Prefect's server in this process until it is stopped.

    In browsers, only the server's own pages may call it: see infra/orchestration/access.py.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        descriptor: Socket that already listens. Replaces host and port.
        owner: Parent process. The server stops when that process ends.
    """
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    from infra.orchestration.access import access_settings, restrict_access
    from infra.upstream.prefect_sqlite_transactions import begin_transactions_as_writers

    class OneStartAtATime(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            # Two servers that create the same database at the same moment would both fail.
            with locked(get_current_settings().home / "starting.lock"):
                await super().startup(sockets)

    if owner is not None:
        threading.Thread(target=_stop_with, args=[owner], daemon=True).start()
    begin_transactions_as_writers()
    level = os.environ.get("PREFECT_SERVER_LOGGING_LEVEL", "error").lower()  # info would log every request
    listener = socket.create_server((host, port)) if descriptor is None else socket.socket(fileno=descriptor)
    with listener, access_settings(listener.getsockname()[1]) as addresses:
        app = restrict_access(create_app(final=True), addresses)
        config = uvicorn.Config(app, fd=listener.fileno(), log_level=level, lifespan="on")
        OneStartAtATime(config).run()


def _stop_with(owner: int) -> None:
    while not parent_is_gone(owner):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(1)


if __name__ == "__main__":
    import cyclopts

    cyclopts.run(_serve)
