"""Provenance names the version of the code from its own checkout, the time and the user."""

import getpass
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from infra import packages, provenance
from infra.provenance import Provenance
from tests.harness.absent import needs

VERSION = version("fmnist-jobs")
needs_git = needs(shutil.which("git") is not None, "git is not installed: sudo apt-get install --yes git")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the module in a folder that isn't a checkout."""
    (tmp_path / "code/infra").mkdir(parents=True)
    for module in (packages, provenance):
        shutil.copy(module.__file__, tmp_path / "code/infra")
    (tmp_path / "code/infra/__init__.py").touch()
    return tmp_path / "code"


@pytest.fixture
def checkout(code: Path) -> Path:
    git(code, "init", "--quiet")
    git(code, "add", ".")
    git(code, "commit", "--quiet", "--message", "One")
    return code


def code_version_in(folder: Path, **environment: str) -> str:
    """Ask the copy in a folder for its version, in a process with another working folder."""
    return subprocess.run(
        [sys.executable, "-B", "-c", "import infra.provenance; print(infra.provenance.code_version())"],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)} | environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()


@needs_git
def test_version_in_a_checkout_has_the_commit(checkout: Path):
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert code_version_in(checkout) == f"{VERSION}+{commit}"


@needs_git
def test_version_of_changed_code_is_dirty(checkout: Path):
    with (checkout / "infra/__init__.py").open("a") as file:
        file.write("# changed\n")
    assert code_version_in(checkout).endswith("-dirty")


@needs_git
def test_version_of_a_tagged_commit_has_the_tag(checkout: Path):
    git(checkout, "tag", "--annotate", "v9", "--message", "Nine")
    assert code_version_in(checkout) == f"{VERSION}+v9"


def test_version_outside_a_checkout_is_the_packages(code: Path):
    assert code_version_in(code) == VERSION


def test_version_on_a_machine_without_git_is_the_packages(code: Path):
    assert code_version_in(code, PATH="") == VERSION


def test_time_is_in_utc():
    made = Provenance.now()
    assert made.created_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - made.created_at) < timedelta(minutes=1)


def test_creator_is_user_and_host():
    assert Provenance.now().created_by == f"{getpass.getuser()}@{platform.node()}"


def test_user_without_a_name_is_unknown():
    program = "import os, infra.provenance as p; os.getuid = lambda: 54321; print(p._who())"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")
    }
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout
    assert output.strip() == f"unknown@{platform.node()}"


def test_provenance_survives_json():
    made = Provenance.now()
    assert Provenance.model_validate_json(made.model_dump_json()) == made
