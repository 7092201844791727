"""Test the container image: its Containerfile, what its build steps install, and a Ray cluster of its entrypoint."""

import fnmatch
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from tests.deploy.image import CONTAINERS, PREFIX, REPOSITORY, USER_ID, Image, copies, instructions
from tests.harness.s3_server import free_port

_SCRIPTS = ("install.sh", "entrypoint.sh", "make-env.sh")


@pytest.mark.parametrize("script", _SCRIPTS)
def test_scripts_parse(script: str) -> None:
    subprocess.run(["sh", "-n", CONTAINERS / script], check=True)


def test_image_does_not_run_as_root() -> None:
    last = max(step.stage for step in instructions())
    users = [step.value for step in instructions() if step.word == "USER" and step.stage == last]
    assert users == [f"{USER_ID}:{USER_ID}"]


def test_copied_files_exist_and_are_not_ignored() -> None:
    lines = [line for line in (CONTAINERS / "Containerfile.dockerignore").read_text().splitlines() if line[:1] != "#"]
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "*"
    for sources, _ in copies():
        for source in sources:
            assert (REPOSITORY / source).exists()
            assert any(source == name or source.startswith(f"{name}/") for name in allowed), source


def test_settings_and_bytecode_of_the_checkout_stay_out_of_the_image() -> None:
    ignored = (CONTAINERS / "Containerfile.dockerignore").read_text().splitlines()
    for name in ("infra/deploy/containers/.env", "flows/__pycache__"):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in ignored if pattern.startswith("**/")), name


def test_image_has_no_secret_in_its_arguments_and_variables() -> None:
    named = " ".join(step.value for step in instructions() if step.word in ("ARG", "ENV", "LABEL"))
    assert not re.search(r"token(?!ize)|secret|password|credential|access_key", named, re.IGNORECASE)


def test_cpu_build_leaves_out_pytorch_and_its_cuda_packages() -> None:
    script = ["sh", str(CONTAINERS / "install.sh"), "cpu-lock"]
    kept = subprocess.run(script, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    left_out = _names((REPOSITORY / "requirements.lock").read_text()) - _names(kept)
    assert {"torch", "torchvision", "triton"} <= left_out
    assert _names(kept) >= {"numpy", "ray", "prefect", "sympy", "filelock"}
    # Every CUDA package that PyTorch's wheel requires is left out, and no package that others need.
    cuda = {re.split(r"[^\w.-]", line)[0] for line in requires("torch") or [] if "nvidia" in line or "cuda" in line}
    assert cuda <= left_out
    assert all(name.startswith(("nvidia-", "cuda-", "torch", "triton")) for name in left_out), left_out
    assert kept.count("==") >= len(_names(kept))


def _names(lock: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9][a-z0-9-]*)==", lock, re.MULTILINE))


def test_image_has_the_locked_packages_and_the_project(image: Image) -> None:
    program = (
        "import json, torch, importlib.metadata as found, infra.orchestration.deployments as d;"
        "names = ('ray', 'prefect', 'torch', 'torchvision', 'pyarrow', 'fastapi', 'fmnist-jobs');"
        "print(json.dumps([{n: found.version(n) for n in names}, d.__file__, d.DEFINITIONS.exists()]))"
    )
    done = image.run("python", "-c", program)
    assert done.returncode == 0, done.stderr
    versions, module, has_deployments = json.loads(done.stdout)
    assert versions == {name: version(name) for name in versions}  # this environment is made from the same lock
    assert module.startswith(image.inside(PREFIX))
    assert has_deployments


def test_image_can_be_read_only(image: Image) -> None:
    """Check that its bytecode is compiled, and that its user can't write to it."""
    compiled = next(Path(image.inside(PREFIX)).glob("lib/python3*/site-packages/ray/__pycache__/__init__.*.pyc"))
    assert compiled.stat().st_mtime > 0
    if os.geteuid() == 0:
        done = image.run("touch", str(compiled.parent / "written"))
        assert done.returncode != 0


def test_missing_command_is_refused(image: Image) -> None:
    done = image.run()
    assert done.returncode == 2
    assert "role" in done.stderr


def test_wrong_request_keeps_its_exit_code(image: Image) -> None:
    done = image.run("fmnist", "store", "check", FMNIST_STORE="s3://user@bucket")
    assert done.returncode == 2, done.stderr
    assert "user or password" in done.stderr


class _Cluster:
    """A head and a node on this machine, each started by the entrypoint as the image's user."""

    def __init__(self, image: Image, sockets: str, logs: Path) -> None:
        self._image = image
        self._logs = logs
        self._sockets = sockets
        self._port = free_port()
        self.dashboard = free_port()
        self.settings = {
            "FMNIST_RAY_ADDRESS": f"127.0.0.1:{self._port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "FMNIST_STORE": f"file://{image.home}/store",
        }
        self.processes: list[subprocess.Popen[str]] = []

    def add(self, role: str, *options: str) -> tuple["subprocess.Popen[str]", dict[str, str]]:
        """Start a node, and wait until it is healthy."""
        own = self.settings | {"FMNIST_RAY_AGENT_PORT": str(free_port())}
        if role == "head":
            ports = [f"--port={self._port}", f"--dashboard-port={self.dashboard}"]
            options = (*options, *ports, f"--temp-dir={self._sockets}")
        log = self._logs / f"{role}.log"
        process = self._image.start(role, *options, "--object-store-memory=200000000", log=log, **own)
        self.processes.append(process)
        deadline = time.monotonic() + 90
        while self._image.run("healthy", **own).returncode != 0:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        return process, own


@pytest.fixture(scope="module")
def cluster(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Cluster]:
    with TemporaryDirectory(prefix="ray-") as sockets:
        image.give(Path(sockets))
        running = _Cluster(image, sockets, tmp_path_factory.mktemp("cluster"))
        try:
            running.add("head")
            running.add("node", "--num-cpus=1")
            yield running
        finally:
            for process in reversed(running.processes):  # the node first, so that it can sign off from the head
                _end(process)


def test_training_runs_on_a_node_beside_the_driver(cluster: _Cluster, image: Image, data_store: str) -> None:
    shutil.copytree(data_store.removeprefix("file://"), image.home / "store")
    image.give(image.home / "store")
    own = cluster.settings | {"FMNIST_RAY_AGENT_PORT": str(free_port())}
    command = ("fmnist", "train", "--preset", "quick", "--epochs", "1", "--workers", "1", "--json")
    done = image.run("driver", *command, timeout=240, **own)
    assert done.returncode == 0, done.stderr
    [result] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(result)["model_version"] == 1
    assert (image.home / "store" / "models" / "fashion-mnist" / "aliases" / "champion.json").exists()


def test_head_answers_health_checks_and_protects_its_dashboard(cluster: _Cluster, image: Image) -> None:
    done = image.run("wget", "-q", "-O", "-", f"http://127.0.0.1:{cluster.dashboard}/api/gcs_healthz")
    assert done.returncode == 0, done.stderr
    refused = image.run("wget", "-q", "-O", "-", f"http://127.0.0.1:{cluster.dashboard}/api/v0/nodes")
    assert refused.returncode != 0  # no token was sent


def test_sigterm_ends_the_command_first_and_keeps_its_exit_code(cluster: _Cluster, image: Image) -> None:
    with _driver(
        cluster, image, "trap 'echo ending; exit 7' TERM; echo started; while :; do sleep 0.1; done"
    ) as driver:
        node = _raylet(driver)
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=30)
        assert "ending\n" in output
        assert driver.returncode == 7
        assert not node.is_running() or node.status() == psutil.STATUS_ZOMBIE


def test_lost_node_ends_the_driver(cluster: _Cluster, image: Image) -> None:
    """Then the container is restarted, instead of staying up without a node."""
    with _driver(cluster, image, "echo started; exec sleep 300") as driver:
        _raylet(driver).kill()
        output, _ = driver.communicate(timeout=60)
        assert driver.returncode == 1
        assert "Ray node" in output
        assert "ended" in output


@contextmanager
def _driver(cluster: _Cluster, image: Image, script: str) -> Iterator["subprocess.Popen[str]"]:
    own = cluster.settings | {"FMNIST_RAY_AGENT_PORT": str(free_port())}
    process = image.start("driver", "sh", "-c", script, **own)
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "started\n":
            assert line, "the driver ended before its command started"
        yield process
    finally:
        _end(process)


def _raylet(process: "subprocess.Popen[str]") -> psutil.Process:
    below = psutil.Process(process.pid).children(recursive=True)
    [found] = [child for child in below if child.name() == "raylet"]
    return found


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process like a container: with SIGTERM, then with SIGKILL for it and its children."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        for child in below:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()
