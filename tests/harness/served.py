"""Run `fmnist serve` in its own process with its own store, and query it and Prefect's API."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from tests.harness.s3_server import free_port

START_SECONDS = 120
PROGRESS_SECONDS = 120
FINAL = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")
_ALWAYS_THERE = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor", "ray::IDLE")
"""Titles of processes that Ray runs whether it has work or not."""
_FLOW_MODULES = {"infra.orchestration.engine"}


class PrefectApi:
    """Calls of a Prefect server's API."""

    def __init__(self, url: str) -> None:
        self.api = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def deployment(self, name: str) -> dict[str, Any]:
        return self.get(f"/deployments/name/{name}/{name}")

    def deploy(self, name: str, entrypoint: str) -> None:
        """Create a flow that isn't one of the project's, and a deployment, both with this name."""
        flow = self.post("/flows/", {"name": name})["id"]
        like = self.deployment("train")
        body = {"name": name, "flow_id": flow, "entrypoint": entrypoint, "work_pool_name": like["work_pool_name"]}
        self.post("/deployments/", body)

    def start(self, name: str, **parameters: Any) -> str:
        """Start a run of a deployment, and return the flow run's id."""
        body = {"parameters": {"parameters": parameters} if parameters else {}}
        return str(self.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"])

    def run(self, flow_run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{flow_run}")

    def state(self, flow_run: str) -> str:
        return str(self.run(flow_run)["state_name"])

    def set_state(self, flow_run: str, kind: str, name: str) -> None:
        """Set the state as the UI does: CANCELLING/Cancelling cancels, SCHEDULED/AwaitingRetry retries."""
        body = {"state": {"type": kind, "name": name}}
        assert self.post(f"/flow_runs/{flow_run}/set_state", body)["status"] == "ACCEPT"

    def wait(self, flow_run: str, *states: str, seconds: float = 400) -> str:
        """Wait until a run is in one of these states or in a final one, and return its state."""
        return until(lambda: (state := self.state(flow_run)) in (*states, *FINAL) and state, seconds)

    def logs(self, flow_run: str) -> list[dict[str, Any]]:
        body = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return list(self.post("/logs/filter", body))

    def messages(self, flow_run: str) -> str:
        return "\n".join(line["message"] for line in self.logs(flow_run))

    def artifacts(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """Return the newest artifact of each key."""
        body = {"artifacts": {"flow_run_id": {"any_": [flow_run]}}}
        found = sorted(self.post("/artifacts/filter", body), key=lambda one: one["created"])
        return {one["key"]: one for one in found}

    def progress(self, flow_run: str, stage: str) -> float:
        """Return a stage's progress in percent. It is 0 before the stage starts."""
        return float(self.artifacts(flow_run).get(f"{stage}-progress", {"data": 0})["data"])

    def wait_for_progress(self, flow_run: str, stage: str, beyond: float) -> None:
        """Wait until a running flow has done more than this percentage of a stage."""

        def is_beyond() -> bool:
            reached = self.progress(flow_run, stage) > beyond
            assert reached or self.state(flow_run) not in FINAL, self.messages(flow_run)
            return reached

        until(is_beyond, PROGRESS_SECONDS)

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return the runs of a deployment that its schedule didn't create, newest first."""
        body = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 100}
        return [one for one in self.post("/flow_runs/filter", body) if not one["auto_scheduled"]]

    def tasks(self, name: str, state: str) -> list[dict[str, Any]]:
        """Return the task runs in this state whose names contain `name`."""
        body = {"task_runs": {"name": {"like_": name}, "state": {"name": {"any_": [state]}}}}
        return list(self.post("/task_runs/filter", body))

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self._ask("POST", path, json=body)

    @retry(retry=retry_if_exception_type(httpx.TransportError), wait=wait_fixed(1), stop=stop_after_delay(60))
    def _ask(self, method: str, path: str, **options: Any) -> Any:
        """Send a request. Retry it while the server restarts or its database is busy, as Prefect's client does."""
        response = self.api.request(method, path, **options)
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise httpx.NetworkError(response.text)
        return _json(response)


class Served(PrefectApi):
    """A running `fmnist serve`."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, environment: dict[str, str]) -> None:
        self.process, self.log, self.environment = process, log, environment
        self.pages = self._address("Prefect")
        self.dashboard = self._address("Ray")
        super().__init__(f"{self.pages}/api")

    def _address(self, name: str) -> str:
        found = re.search(rf"^  {name} +(\S+)$", self.log.read_text(), re.MULTILINE)
        assert found is not None, self.log.read_text()
        return found[1]

    def ray_work(self) -> list[str]:
        """Return the titles of this Ray's worker processes that aren't idle."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        titles = (_title(child) for child in children)
        return [title for title in titles if title.startswith("ray::") and not title.startswith(_ALWAYS_THERE)]

    def ray_leftovers(self) -> list[str]:
        """Return the busy worker processes, the runs' living actors, and the placement groups."""
        actors = [one for one in self._ray("actors") if one["state"] != "DEAD"]
        groups = [one for one in self._ray("placement_groups") if one["state"] != "REMOVED"]
        left = [one["class_name"] for one in actors if "AutoscalingCoordinator" not in one["class_name"]]
        return [*self.ray_work(), *left, *(f"placement group {one['placement_group_id']}" for one in groups)]

    def _ray(self, what: str) -> list[dict[str, Any]]:
        """List actors or placement groups through the state API of Ray's dashboard."""
        token = os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self.dashboard}/api/v0/{what}?limit=1000&detail=0"
        answer = _json(httpx.get(url, headers=headers, timeout=30, trust_env=False))
        return list(answer["data"]["result"]["result"])

    def has_worker(self) -> bool:
        children = psutil.Process(self.process.pid).children()
        return any("infra.orchestration.worker" in _title(child) for child in children)

    def worker(self) -> psutil.Process:
        """Return the process of Prefect's worker."""
        return self._child("infra.orchestration.worker")

    def server(self) -> psutil.Process:
        """Return the process of Prefect's server."""
        return self._child("infra.orchestration.server")

    def flow_processes(self) -> list[psutil.Process]:
        """Return the processes that run flows, including orphaned ones."""
        marked = []
        for process in psutil.process_iter(["cmdline"]):
            if not _FLOW_MODULES.isdisjoint(process.info["cmdline"] or []):
                try:
                    own = process.environ().get("FMNIST_STATE_DIR") == self.environment["FMNIST_STATE_DIR"]
                except psutil.Error:
                    continue
                marked += [process] if own else []
        return marked

    def _child(self, module: str) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if module in child.cmdline())


def until(found: Callable[[], Any], seconds: float) -> Any:
    """Call `found` until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, f"no result after {seconds:.0f} s, the last answer was {answer!r}"
        time.sleep(0.3)
    return answer


def _json(response: httpx.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


@contextmanager
def serving(folder: Path, data_store: str) -> Iterator[Served]:
    """Run `fmnist serve` for the length of the block. Check that it leaves no process running."""
    shutil.copytree(data_store.removeprefix("file://"), folder / "store")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "FMNIST_RAY"))},
        "FMNIST_STORE": str(folder / "store"),
        "FMNIST_STATE_DIR": str(folder / "state"),
    }
    log = folder / "serve.log"
    with log.open("w") as output:
        command = [str(Path(sys.executable).parent / "fmnist"), "serve", "--port", str(free_port())]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True, cwd=folder)
    try:
        until(lambda: "Press Ctrl-C" in log.read_text() or process.poll() is not None, START_SECONDS)
        assert process.poll() is None, log.read_text()
        yield Served(process, log, environment)
    finally:
        started = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        _, left = psutil.wait_procs(started, timeout=10)
        titles = [_title(one) for one in left]
        for one in left:
            one.kill()
    assert process.returncode == 0, log.read_text()
    assert titles == []
