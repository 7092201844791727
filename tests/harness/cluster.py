"""Run a Ray cluster on this machine whose nodes share nothing but the network.

Each node is a separate raylet with its own CPUs, object store, working folder and home. The nodes' Python has Ray and
the other dependencies, but not this project. The project has to come with the job.
"""

import secrets
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from infra.packages import PACKAGES
from tests.harness.commands import user_environment
from tests.harness.s3_server import free_port

_START_SECONDS = 60
_RAY_START = (
    *("-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
    "--object-store-memory=200000000",
)


@dataclass
class Cluster:
    """A head without CPUs, and nodes that join and leave."""

    folder: Path
    python: Path
    sockets: str
    """Folder for Ray's sockets. Its path is short, because Ray appends about 80 of a socket path's 107 characters."""
    variables: dict[str, str]
    """Environment variables of the nodes, such as credentials. A driver sends no credentials."""
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = field(default_factory=free_port)
    nodes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that a driver needs to connect."""
        return {"FMNIST_RAY_ADDRESS": self.address, **self._token}

    @property
    def _token(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start_head(self) -> None:
        ports = [f"--port={self.port}", f"--dashboard-port={free_port()}"]
        self._start("head", ["--head", "--num-cpus=0", f"--temp-dir={self.sockets}", *ports])
        self._wait_until_up("head")

    def add_node(self, name: str, cpus: int) -> None:
        """Start a node and wait until it has joined.

        Start nodes one at a time. If two with the same IP address join at once, one may not find itself.
        """
        self._start(name, [f"--address={self.address}", f"--num-cpus={cpus}"])
        self._wait_until_up(name)

    def _wait_until_up(self, name: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while "Ray runtime started" not in (log := self.log(name)):
            assert self.nodes[name].poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """Kill a node and everything that runs on it."""
        process = self.nodes.pop(name)
        for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()

    def packages(self, name: str) -> list[str]:
        """Return which packages a node's Python can import, out of `ray` and this project's."""
        program = f"import importlib.util as found; print(*filter(found.find_spec, {('ray', *PACKAGES)}))"
        done = subprocess.run(
            [self.python, "-c", program],
            cwd=self.folder / name,
            env=self._environment(name),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout.split()

    def log(self, name: str) -> str:
        return (self.folder / name / "log").read_text()

    def _start(self, name: str, options: list[str]) -> None:
        home = self.folder / name
        home.mkdir()
        with (home / "log").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [self.python, *_RAY_START, *options],
                cwd=home,
                env=self._environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self, name: str) -> dict[str, str]:
        own = {"HOME": str(self.folder / name), "RAY_ENABLE_AUTO_CONNECT": "0"}
        return user_environment() | own | self.variables | self._token


@contextmanager
def ray_cluster(folder: Path, variables: dict[str, str] | None = None) -> Iterator[Cluster]:
    """Run a cluster for the length of the block. It starts with the head alone.

    Args:
        folder: folder for the nodes' homes and logs.
        variables: environment variables of the nodes.
    """
    with TemporaryDirectory(prefix="ray-") as sockets:
        cluster = Cluster(folder, _python_without_this_project(folder), sockets, variables or {})
        yield from _running(cluster)


def _running(cluster: Cluster) -> Iterator[Cluster]:
    try:
        cluster.start_head()
        yield cluster
    finally:
        for process in cluster.nodes.values():
            process.send_signal(signal.SIGTERM)
        for name in list(cluster.nodes):
            with suppress(subprocess.TimeoutExpired):
                cluster.nodes[name].wait(timeout=10)
            with suppress(psutil.NoSuchProcess):
                cluster.kill(name)


def _python_without_this_project(folder: Path) -> Path:
    """Make a virtual environment with this one's packages, except the project, which is installed in editable mode."""
    home = folder / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    python = home / "bin" / "python"
    program = "import importlib.util as found; assert found.find_spec('ray') and not found.find_spec('infra')"
    subprocess.run([python, "-c", program], check=True, cwd="/")
    return python
