"""Run the `fmnist` command in a process of its own, with the environment of a user who types it."""

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


def user_environment() -> dict[str, str]:
    """Return the environment without the variables that the session's own services set."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "FMNIST_"))}


def fmnist(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end and capture what it prints."""
    return subprocess.run(
        [FMNIST, *arguments],
        env=user_environment() | environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def printed(program: str, folder: Path, **settings: str) -> list[str]:
    """Run a Python program in its own process, with access to the session's services.

    Returns:
        The words that it printed.
    """
    (folder / "program.py").write_text(program)
    paths = {"PYTHONPATH": str(Path(__file__).parents[2]), "FMNIST_STORE": str(folder / "store")}
    done = subprocess.run(
        [sys.executable, folder / "program.py"],
        cwd=folder,
        env=os.environ | paths | settings,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def one_clear_line(result: "subprocess.CompletedProcess[str]") -> str:
    """Return the only line that starts with `fmnist:`, and check that no traceback was printed."""
    assert "Traceback" not in result.stderr + result.stdout
    [line] = [line for line in result.stderr.splitlines() if line.startswith("fmnist: ")]
    return line


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the running processes whose state folder is in this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if is_alive(process) and process.environ().get("FMNIST_STATE_DIR") == str(folder / "state"):
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process is running, and not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_command(*arguments: str, stdout: int, stderr: int, **environment: str) -> "subprocess.Popen[str]":
    """Start the command in the background, in a session of its own."""
    return subprocess.Popen(
        [FMNIST, *arguments],
        env=user_environment() | environment,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
        # If a shell runs the tests in the background, they and their children would ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


@contextlib.contextmanager
def started(*arguments: str, wait_for: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the command and wait until it prints `wait_for`. Kill it and its children at the end of the block."""
    process = start_command(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **environment)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if wait_for in line:
                break
        else:
            raise AssertionError(f"{arguments} ended before it printed {wait_for!r}: {''.join(lines)}")
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
    """Wait for processes to end. Return those that are still running after the timeout."""
    deadline = time.monotonic() + seconds
    alive = processes
    while alive and time.monotonic() < deadline:
        alive = [process for process in alive if is_alive(process)]
        if alive:
            time.sleep(0.2)
    return [f"{process.pid} {process.name()}" for process in alive]
