"""Skip tests that need something this machine lacks. With CI=true in the environment they run or fail instead."""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

IN_CI = os.environ.get("CI") == "true"


def needs(present: bool, what: str) -> pytest.MarkDecorator:
    """Skip the marked test if something is absent. In CI it runs anyway."""
    return pytest.mark.skipif(not present and not IN_CI, reason=what)


def missing(what: str) -> NoReturn:
    """Skip the running test because something is absent. In CI it fails."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


def install(package: str, what: str) -> None:
    """Install a Debian package in CI. Elsewhere, skip the running test and print the command that installs it."""
    command = f"apt-get install --yes --no-install-recommends {package}"
    if not IN_CI:
        missing(f"{what} is not installed: sudo {command}")
    with Path(tempfile.gettempdir(), "fmnist-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # CI runs two suites at a time, and apt-get fails if another one runs
        subprocess.run(["apt-get", "update", "--quiet"], check=True, timeout=120)
        subprocess.run(command.split(), check=True, timeout=280)
