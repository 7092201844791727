"""Tests of what is not on every machine: skipped where it is absent; in CI it is installed, or missed by a failure."""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

IN_CI = os.environ.get("CI") == "true"


def needs(present: bool, what: str) -> pytest.MarkDecorator:
    """Mark a test that needs something; in CI it runs, and fails where that is absent."""
    return pytest.mark.skipif(not present and not IN_CI, reason=what)


def missing(what: str) -> NoReturn:
    """End a test that found something absent."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


def install(package: str, what: str) -> None:
    """Install a package of Debian's where this is CI; elsewhere end the test with the command that does."""
    command = f"apt-get install --yes --no-install-recommends {package}"
    if not IN_CI:
        missing(f"{what} is not installed: sudo {command}")
    with Path(tempfile.gettempdir(), "fmnist-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # CI runs two suites at a time, and apt-get fails if another one runs
        subprocess.run(["apt-get", "update", "--quiet"], check=True, timeout=120)
        subprocess.run(command.split(), check=True, timeout=280)
