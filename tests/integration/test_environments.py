"""The `fmnist` command on other people's machines: their folders, variables, limits, and ways to end it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.commands import (
    FMNIST,
    descendants,
    one_clear_line,
    start_command,
    started,
    user_environment,
    wait_until_gone,
)

pytestmark = pytest.mark.slow  # many commands, each with a Ray and a Prefect of its own

IMAGES = 3
NOBODY = 12345
"""A user id without an entry in /etc/passwd, as container platforms assign them."""
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user or to mount")


@dataclass(frozen=True)
class Place:
    """A store with a model, and some images to classify."""

    root: Path

    @property
    def images(self) -> str:
        """Folder with the images."""
        return str(self.root / "images")

    def settings(self, state: Path) -> dict[str, str]:
        """Return the variables for a command with a state folder of its own."""
        return {"FMNIST_STORE": str(self.root / "store"), "FMNIST_STATE_DIR": str(state)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Make a store with an untrained model at a path that needs care: with spaces, `#`, `%` and an umlaut."""
    import torch
    from PIL import Image
    from safetensors.torch import save

    from fmnist_model.network import NeuralNetwork
    from infra.storage.checkpoints import write_checkpoint
    from infra.storage.format import ensure_format
    from infra.storage.model_registry import ModelRegistry
    from infra.storage.object_store import open_store

    root = tmp_path_factory.mktemp("place") / "of Zoë, 100% #1"
    (root / "images").mkdir(parents=True)
    store = open_store(f"file://{root}/store")
    ensure_format(store)
    files = {"model.safetensors": save(NeuralNetwork().state_dict())}
    checkpoint = write_checkpoint(store, run_id="new", epoch=1, files=files, metrics={}, parameters={}, data_version="")
    registry = ModelRegistry(store)
    registry.register(
        run_id="new",
        epoch=1,
        weights_sha256=checkpoint.files[0].sha256,
        metrics={"test_accuracy": 0.1},
        parameters={},
        data_version="",
    )
    registry.point("champion", 1)
    generator = torch.Generator().manual_seed(0)
    for number in range(IMAGES):
        pixels = torch.randint(256, (28, 28), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(root / "images" / f"Zoë {number}.png")
    return Place(root)


def run_in(
    folder: Path,
    place: Place,
    *,
    table: str,
    prefix: Sequence[str] = (),
    without: Sequence[str] = (),
    state: Path | None = None,
    **environment: str,
) -> "subprocess.CompletedProcess[str]":
    """Classify the images in a folder and an environment, without standard input."""
    variables = user_environment() | place.settings(state or folder / "state") | environment
    return subprocess.run(
        [*prefix, FMNIST, "classify", place.images, "--table", table, "--json"],
        cwd=folder,
        env={name: value for name, value in variables.items() if name not in without},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def assert_classified(result: "subprocess.CompletedProcess[str]") -> None:
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["predicted"] == IMAGES


def test_folder_with_modules_of_the_same_names(place: Place, tmp_path: Path) -> None:
    ours = ("tasks.py", "infra/__init__.py", "flows/__init__.py", "fmnist_model.py", "tests/__init__.py")
    others = ("ray/__init__.py", "prefect.py", "torch.py", "numpy.py", "random.py", "types.py", "json.py")
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"raise RuntimeError('this is the {name} of the user')\n")
    # This terminal shows only ASCII, and is one character wide.
    terminal = {
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "POSIX",
        "TERM": "dumb",
        "COLUMNS": "1",
        "PYTHONWARNINGS": "error",
    }
    assert_classified(run_in(tmp_path, place, table="folder", **terminal))


def test_variables_for_other_servers(place: Place, tmp_path: Path) -> None:
    nothing = "127.0.0.1:9"
    variables = {
        "http_proxy": f"http://{nothing}",
        "HTTPS_PROXY": f"http://{nothing}",
        "ALL_PROXY": f"socks5://{nothing}",
        "no_proxy": "example.com",
        "PREFECT_SERVER_API_AUTH_STRING": "admin:secret",
        "PREFECT_API_AUTH_STRING": "other:secret",
        "PREFECT_SERVER_UI_API_URL": "https://prefect.example/api",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_HOME": str(tmp_path / "own"),
        "RAY_ADDRESS": nothing,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    assert_classified(run_in(tmp_path, place, table="variables", **variables))
    assert (tmp_path / "own" / "prefect.db").exists()
    assert not (tmp_path / "state" / "prefect" / "prefect.db").exists()


@needs_root
def test_user_id_without_a_name_or_a_home_and_a_long_temporary_folder(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.root, tmp_path / "place")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    temporary = tmp_path / ("long" * 20)
    temporary.mkdir(mode=0o777)
    os.chown(temporary, NOBODY, NOBODY)
    # The user may read everything, so that it finds Python, but may write only what it owns.
    reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reading)
    result = run_in(
        tmp_path,
        Place(tmp_path / "place"),
        table="user",
        prefix=become,
        without=("USER", "LOGNAME", "USERNAME"),
        HOME="/",
        TMPDIR=str(temporary),
    )
    assert_classified(result)


@needs_root
def test_damaged_history_little_shared_memory_and_few_open_files(place: Place, tmp_path: Path) -> None:
    database = tmp_path / "state" / "prefect" / "prefect.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"damaged" * 1000)
    limits = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && ulimit -n 1024 && exec "$@"'
    result = run_in(tmp_path, place, table="limits", prefix=("unshare", "-m", "sh", "-c", limits, "sh"))
    assert_classified(result)
    [line] = [line for line in result.stderr.splitlines() if "set aside" in line]
    [aside] = database.parent.glob("prefect.db.*")
    assert str(aside) in line
    assert aside.read_bytes() == b"damaged" * 1000


def test_three_first_commands_at_once(place: Place, tmp_path: Path) -> None:
    settings = place.settings(tmp_path / "state")
    arguments = ["classify", place.images, "--table"]
    commands = [
        start_command(*arguments, f"first{number}", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings)
        for number in range(3)
    ]
    errors = [command.communicate(timeout=240)[1] for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0], errors


def test_temporary_folder_that_does_not_exist_is_named(place: Place, tmp_path: Path) -> None:
    result = run_in(tmp_path, place, table="temporary", TMPDIR=str(tmp_path / "none"))
    assert f"TMPDIR: {tmp_path / 'none'}" in one_clear_line(result)
    assert result.returncode == 2


def test_settings_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"FMNIST_STORE=\xff\n")
    result = subprocess.run(
        [FMNIST, "models", "list"], cwd=tmp_path, env=user_environment(), capture_output=True, text=True, check=False
    )
    assert str(tmp_path / ".env") in one_clear_line(result)
    assert result.returncode == 2


def test_unreachable_database_of_the_user_is_named(place: Place, tmp_path: Path) -> None:
    address = f"sqlite+aiosqlite:///{tmp_path}/none/prefect.db"
    result = run_in(tmp_path, place, table="database", PREFECT_API_DATABASE_CONNECTION_URL=address)
    assert "PREFECT_API_DATABASE_CONNECTION_URL" in one_clear_line(result)
    assert result.returncode == 1


def test_permanent_server_keeps_the_users_address_of_the_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.orchestration.server import prefect_server

    monkeypatch.setenv("PREFECT_UI_API_URL", "https://prefect.example/api")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with prefect_server(tmp_path, port) as server:
        url = server.wait_until_healthy().removesuffix("/api")
        with urllib.request.urlopen(f"{url}/ui-settings") as answer:  # noqa: S310 # a server of this test
            assert json.load(answer)["api_url"] == "https://prefect.example/api"


@pytest.mark.parametrize("arguments", [["models", "list"], ["models", "list", "--json"], ["--help"]], ids=" ".join)
def test_reader_that_stops_reading_ends_the_command_without_a_word(arguments: list[str], place: Place) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as output:
        result = subprocess.run(
            [FMNIST, *arguments],
            env=user_environment() | place.settings(place.root / "state"),
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert result.stderr == b""
    assert result.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed: str, place: Place) -> None:
    result = subprocess.run(
        ["sh", "-c", f'exec "$0" models list {closed}', FMNIST],
        env=user_environment() | place.settings(place.root / "state"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_full_disk_behind_the_output_is_named(place: Place) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [FMNIST, "models", "list", "--json"],
            env=user_environment() | place.settings(place.root / "state"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert os.strerror(28) in result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_ended_training_run_says_how_to_resume_and_leaves_nothing_running(
    number: signal.Signals, own_store: dict[str, str], tmp_path: Path
) -> None:
    # The first checkpoint is written during the second epoch, and complete before the third.
    with started("train", "--preset", "quick", "--epochs", "200", wait_for="epoch 3/", **own_store) as process:
        children = descendants(process)
        os.kill(process.pid, number)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    [line] = [line for line in errors.splitlines() if line.startswith("fmnist: ")]
    assert number.name in line
    [run] = (tmp_path / "store" / "runs").iterdir()
    assert f"--resume {run.name}" in line
    assert "Traceback" not in errors
    assert wait_until_gone(children, 20) == []
