"""A store that is down fails the job with exit code 1. A misconfigured store is a wrong request with exit code 2."""

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.cli.main import how_to_resume, main
from tests.harness.s3_server import free_port, isolate_aws

Endpoint = Callable[[str], str]
"""Start what a parameter names, and return its URL."""


@pytest.fixture(autouse=True)
def s3_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Configure a store on S3 with credentials and few retries, and work in a folder that holds an image file."""
    isolate_aws(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("image.png").touch()
    settings = {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "AWS_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "2",
        "FMNIST_STORE": "s3://bucket/prefix",
        "FMNIST_STATE_DIR": str(tmp_path / "state"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A server that answers every request with one status, or a port where nothing listens."""
    servers = []

    def start(status: str) -> str:
        if status == "refused":
            return f"http://127.0.0.1:{free_port()}"
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _answering(int(status)))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _answering(status: int) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            if self.raw_requestline and self.parse_request():
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
            pass

    return Handler


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and the line that it prints about the error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    [line] = [line for line in errors.splitlines() if line.startswith("fmnist: ")]
    assert "canary" not in line
    return int(ended.value.code or 0), line


COMMANDS = pytest.mark.parametrize(
    "arguments",
    [["classify", "image.png", "--table", "t"], ["train"], ["models", "list"], ["store", "check"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)


@COMMANDS
@pytest.mark.parametrize("status", ["refused", "500", "503"])
def test_store_that_is_down_fails_the_job(
    arguments: list[str],
    status: str,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url = endpoint(status)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    code, line = run(capfd, *arguments)
    assert code == 1
    assert "s3://bucket/prefix" in line
    assert url in line


@pytest.mark.parametrize("status", ["refused", "500"])
def test_inputs_on_a_server_that_is_down_fail_the_job(
    status: str, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FMNIST_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint(status))
    code, line = run(capfd, "classify", "s3://images/new", "--table", "t")
    assert code == 1
    assert "s3://images/new" in line


@pytest.mark.parametrize(
    "wrong",
    [
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_PROFILE": "nobody"},
        {"AWS_ENDPOINT_URL": "user:canary@localhost"},
        {"AWS_ENDPOINT_URL": "404"},
        {"AWS_ENDPOINT_URL": "403"},
    ],
    ids=lambda wrong: "=".join(next(iter(wrong.items()))),
)
@pytest.mark.parametrize("arguments", [["train"], ["models", "list"]], ids=" ".join)
def test_store_that_is_misconfigured_is_a_wrong_request(
    arguments: list[str],
    wrong: dict[str, str],
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, endpoint(value) if value.isdecimal() else value)
    code, line = run(capfd, *arguments)
    assert code == 2
    assert "s3://bucket/prefix" in line


def test_interrupted_run_names_itself_even_if_the_store_is_down(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint("refused"))
    assert "--resume run-7" in how_to_resume("run-7")
