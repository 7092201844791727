"""Provenance: which code created something, when, where and for whom."""

import getpass
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version

from pydantic import BaseModel

from infra.packages import ROOT


class Provenance(BaseModel):
    """Origin of a stored record, such as a checkpoint, a model version or an alias."""

    created_at: datetime
    """Time of creation in UTC."""
    created_by: str
    """User and host, as `user@host`."""
    code_version: str
    """The package's version. In a git checkout also the commit, with `-dirty` if files were changed."""

    @classmethod
    def now(cls) -> "Provenance":
        """Return the provenance of a record created now by this process."""
        return cls(created_at=datetime.now(UTC), created_by=_who(), code_version=code_version())


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, the user id may have no name
        user = "unknown"
    return f"{user}@{platform.node()}"


@cache
def code_version() -> str:
    """Return the package's version, and the commit in a git checkout of this project."""
    if not (ROOT / ".git").exists():  # git would find the checkout of another project that this one is installed in
        return version("fmnist-jobs")
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607 (git may be anywhere on the PATH)
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version("fmnist-jobs")
    return f"{version('fmnist-jobs')}+{described}"
