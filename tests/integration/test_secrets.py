"""No command prints a secret of the AWS settings, writes it to a file or shows it in the process list."""

import base64
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psutil
import pytest

from tests.harness.s3_server import S3Server, free_port, on_ceph

pytest_plugins = ["tests.harness.gateways"]

FMNIST = Path(sys.executable).parent / "fmnist"
CANARY = "canary+in/the=mine"
TOKEN = "canary-token"  # noqa: S105 (made up for these tests)


@dataclass(frozen=True)
class Ran:
    """The outcome of a command."""

    exit_code: int
    printed: str
    """Standard output and standard error."""
    command_lines: set[str]
    """Command lines of its process and of all child processes, while it ran."""


@dataclass(frozen=True)
class Place:
    """A folder for one test, where commands run and leave their files."""

    folder: Path
    environment: dict[str, str]

    def run(self, *arguments: str, **settings: str) -> Ran:
        process = subprocess.Popen(
            [FMNIST, *arguments],
            cwd=self.folder,
            env=self.environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        command_lines: set[str] = set()
        watch = threading.Thread(target=_watch, args=(process.pid, command_lines))
        watch.start()
        printed = process.communicate(timeout=200)[0]
        watch.join()
        return Ran(process.returncode, printed, command_lines)

    def files_with(self, secret: str) -> list[str]:
        """Files that hold a secret, plain or encoded as in headers and URLs."""
        forms = {secret.encode(), quote(secret, safe="").encode(), base64.b64encode(secret.encode())}
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return [str(path) for path in files if any(form in path.read_bytes() for form in forms)]


def _watch(pid: int, command_lines: set[str]) -> None:
    while True:
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            for each in (process, *process.children(recursive=True)):
                try:
                    command_lines.add(" ".join(each.cmdline()))
                except psutil.Error:  # it has ended
                    continue
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Settings for a store on S3, with credentials that no server accepts. All files go below one folder."""
    (tmp_path / "home").mkdir()
    others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FMNIST_", "PREFECT_"))}
    return Place(
        tmp_path,
        others
        | {
            "HOME": str(tmp_path / "home"),
            "TMPDIR": str(tmp_path),
            "FMNIST_STATE_DIR": str(tmp_path / "state"),
            "FMNIST_STORE": f"s3://fmnist/{uuid4().hex}",
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        },
    )


COMMANDS = [
    ["store", "check"],
    ["store", "check", "--json"],
    ["store", "prune", "--dry-run"],
    ["models", "list"],
    ["predictions", "list"],
    ["dataset", "info"],
]


def assert_nowhere(secret: str, ran: Ran, place: Place) -> None:
    assert secret not in ran.printed
    assert ran.command_lines, "the test saw no process"
    assert not [line for line in ran.command_lines if secret in line]
    assert place.files_with(secret) == []


def test_accepted_credentials_show_nowhere(place: Place, moto_server: S3Server) -> None:
    for command in COMMANDS:
        ran = place.run(*command, **moto_server.environment)

        assert ran.exit_code == (2 if command == ["dataset", "info"] else 0), ran.printed
        assert_nowhere(moto_server.environment["AWS_SECRET_ACCESS_KEY"], ran, place)
        assert moto_server.environment["AWS_ACCESS_KEY_ID"] not in ran.printed


@on_ceph
def test_rejected_credentials_show_nowhere(place: Place, ceph_gateway: S3Server) -> None:
    known = ceph_gateway.environment["AWS_ACCESS_KEY_ID"]
    settings = [
        {"AWS_ACCESS_KEY_ID": known},
        {},
        {"AWS_ACCESS_KEY_ID": known, "AWS_SESSION_TOKEN": TOKEN},
    ]
    for wrong in settings:
        for command in (["store", "check"], ["models", "list"], ["train"]):
            ran = place.run(*command, AWS_ENDPOINT_URL=ceph_gateway.endpoint, **wrong)

            assert ran.exit_code == (1 if command == ["store", "check"] else 2), ran.printed
            assert "Traceback" not in ran.printed
            for secret in (CANARY, TOKEN):
                assert_nowhere(secret, ran, place)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["store", "check"], ["models", "list"], ["train"], ["classify", "s3://fmnist/images", "--table", "t"]],
    ids=" ".join,
)
def test_secrets_show_nowhere_if_no_server_answers(place: Place, command: list[str]) -> None:
    ran = place.run(*command, AWS_SESSION_TOKEN=TOKEN)

    assert ran.exit_code == 1, ran.printed
    assert place.environment["AWS_ENDPOINT_URL"] in ran.printed
    for secret in (CANARY, TOKEN):
        assert_nowhere(secret, ran, place)


@on_ceph
def test_secrets_of_a_profile_show_nowhere(place: Place, ceph_gateway: S3Server) -> None:
    credentials = place.folder / "credentials"
    credentials.write_text(
        f"[ml]\naws_access_key_id = AKIATESTTESTTESTTEST\n"
        f"aws_secret_access_key = {CANARY}\naws_session_token = {TOKEN}\n"
    )
    settings = {"AWS_PROFILE": "ml", "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
    without_keys = Place(
        place.folder,
        {
            name: value
            for name, value in place.environment.items()
            if name not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        },
    )

    ran = without_keys.run("store", "check", AWS_ENDPOINT_URL=ceph_gateway.endpoint, **settings)

    assert ran.exit_code == 1
    assert "shared-credentials-file" in ran.printed
    credentials.unlink()
    for secret in (CANARY, TOKEN):
        assert_nowhere(secret, ran, place)


@pytest.mark.parametrize("command", [["store", "check"], ["train"], ["models", "list"]], ids=" ".join)
def test_secret_in_the_store_uri_is_refused_but_not_repeated(place: Place, command: list[str]) -> None:
    ran = place.run(*command, FMNIST_STORE="s3://key:canary-in-root@bucket/prefix")

    assert ran.exit_code == 2
    assert "FMNIST_STORE" in ran.printed
    assert_nowhere("canary-in-root", ran, place)


def test_secret_in_an_input_uri_is_refused_but_not_repeated(place: Place) -> None:
    # The process list shows this secret, because the user typed it on the command line.
    ran = place.run(
        "classify", "s3://key:canary-in-input@bucket/x", "--table", "t", FMNIST_STORE=str(place.folder / "store")
    )

    assert ran.exit_code == 2
    assert "canary-in-input" not in ran.printed
    assert place.files_with("canary-in-input") == []


def test_secret_in_an_image_uri_is_refused_but_not_repeated(place: Place) -> None:
    ran = place.run("describe", "s3://key:canary-in-image@bucket/x.png", FMNIST_STORE=str(place.folder / "store"))

    assert ran.exit_code == 2
    assert "canary-in-image" not in ran.printed


@pytest.mark.slow
def test_secret_in_the_endpoint_shows_nowhere(place: Place) -> None:
    endpoint = place.environment["AWS_ENDPOINT_URL"].replace("://", "://user:canary-in-endpoint@")
    for command in (["store", "check"], ["models", "list"]):
        ran = place.run(*command, AWS_ENDPOINT_URL=endpoint)

        assert ran.exit_code in (1, 2)
        assert_nowhere("canary-in-endpoint", ran, place)
