"""The `fmnist` command as a process of its own, in the environment of a person who types it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

FMNIST = Path(sys.executable).parent / "fmnist"


def outside() -> dict[str, str]:
    """The environment without what the session's own services added to it: a person has no Prefect server yet."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "FMNIST_"))}


def fmnist(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [FMNIST, *arguments], env=outside() | environment, capture_output=True, text=True, timeout=240, check=False
    )


def printed(program: str, folder: Path, **settings: str) -> list[str]:
    """The words that a program in a process of its own prints, which finds the session's services."""
    (folder / "program.py").write_text(program)
    paths = {"PYTHONPATH": str(Path(__file__).parents[2]), "FMNIST_STORE": str(folder / "store")}
    done = subprocess.run(
        [sys.executable, folder / "program.py"],
        cwd=folder,
        env=os.environ | paths | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def one_clear_line(result: "subprocess.CompletedProcess[str]") -> str:
    """The line beginning with `fmnist:`; nothing else may look like an accident."""
    assert "Traceback" not in result.stderr + result.stdout
    [line] = [line for line in result.stderr.splitlines() if line.startswith("fmnist: ")]
    return line


def processes_of(folder: Path) -> list[str]:
    """Processes that run with the folder's settings."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if not ended and process.environ().get("FMNIST_STATE_DIR") == str(folder / "state"):
                found.append(" ".join(process.cmdline()))
    return found


def typed(*arguments: str, stdout: int, stderr: int, **environment: str) -> "subprocess.Popen[str]":
    """The command as a process that goes on, in a session of its own."""
    return subprocess.Popen(
        [FMNIST, *arguments],
        env=outside() | environment,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
        # Where the tests run in the background of a shell, they and their children would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


@contextlib.contextmanager
def started(*arguments: str, wait_for: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the command and wait until it says something; what is left of it at the end of the block is killed."""
    process = typed(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **environment)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if wait_for in line:
                break
        else:
            raise AssertionError(f"{arguments} ended before it said {wait_for!r}: {''.join(said)}")
        yield process
    finally:
        left = descendants(process) if process.poll() is None else []
        process.kill()
        process.wait()
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_until_gone(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Wait for processes to end; return those that did not."""
    deadline = time.monotonic() + seconds
    alive = processes
    while alive and time.monotonic() < deadline:
        alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.2)
    return [f"{p.pid} {p.name()}" for p in alive]
