"""Run a Prefect server and a worker with the deployments of infra/deploy/prefect.yaml, each in its own process."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from infra.orchestration.deployments import DEFINITIONS
from infra.orchestration.worker import end_with_runs
from tests.harness.commands import user_environment
from tests.harness.s3_server import free_port
from tests.harness.served import PrefectApi, until

_PREFECT = (sys.executable, "-m", "prefect")
_START_SECONDS = 90
_TEST_PREFIXES = ("PREFECT_", "RAY_", "DO_NOT_TRACK", "AWS_")
_ONLY_REQUESTED_RUNS = {
    # Neither schedules nor a new champion start a run.
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",  # the server would write its UI into the installed packages
}
_WORKER = {"PREFECT_WORKER_QUERY_SECONDS": "1"}


@contextmanager
def deployed(folder: Path, settings: dict[str, str], environment: dict[str, str]) -> Iterator[PrefectApi]:
    """Run a server and a worker for the length of the block.

    The deployments are created from a folder that is removed before the worker starts, as if that ran elsewhere.

    Args:
        folder: folder for the database, the logs, and the worker's `.env`.
        settings: settings of the project, written to the worker's `.env`.
        environment: more environment variables of the worker.

    Yields:
        A client of the server, which has the deployments.
    """
    pool, deploy, worker = _documented_commands()
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    at_server = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": url, "DO_NOT_TRACK": "1"}
    server = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _process(folder / "server.log", server, at_server | _ONLY_REQUESTED_RUNS) as process:
        until(lambda: _answers(url) or process.poll() is not None, _START_SECONDS)
        assert process.poll() is None, (folder / "server.log").read_text()
        with TemporaryDirectory() as checkout:
            definitions = Path(checkout) / "infra" / "deploy" / DEFINITIONS.name
            definitions.parent.mkdir(parents=True)
            shutil.copy(DEFINITIONS, definitions)
            for arguments in (pool, deploy):
                done = subprocess.run(
                    [*_PREFECT, *arguments],
                    cwd=checkout,
                    env=_clean(at_server),
                    capture_output=True,
                    text=True,
                    timeout=_START_SECONDS,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        with _process(folder / "worker.log", worker, at_server | _WORKER | environment):
            yield PrefectApi(url)


def _documented_commands() -> list[list[str]]:
    """Read the commands at the top of infra/deploy/prefect.yaml: pool, deployments, worker."""
    prefix = "#   prefect "
    lines = DEFINITIONS.read_text().splitlines()
    return [shlex.split(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)]


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    return False


@contextmanager
def _process(log: Path, arguments: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_PREFECT, *arguments],
            cwd=log.parent,
            env=_clean(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_with_runs(process.pid)
        process.wait()


def _clean(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of a user who has set nothing but these variables."""
    outer = {name: value for name, value in user_environment().items() if not name.startswith(_TEST_PREFIXES)}
    return outer | environment
