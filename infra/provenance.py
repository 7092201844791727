"""Which code made a thing, where, when, and on whose behalf."""

import getpass
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version

from pydantic import BaseModel

from infra.packages import ROOT


class Provenance(BaseModel):
    """Stamped on every checkpoint, model version and alias."""

    created_at: datetime
    """UTC."""
    created_by: str
    """user@host."""
    code_version: str
    """The package's version, and in a git checkout the commit, with `-dirty` where files were changed."""

    @classmethod
    def now(cls) -> "Provenance":
        """The stamp of this process at this moment."""
        return cls(created_at=datetime.now(UTC), created_by=_who(), code_version=code_version())


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under an id without a name
        user = "unknown"
    return f"{user}@{platform.node()}"


@cache
def code_version() -> str:
    """The package's version, and in a git checkout of this project the commit."""
    if not (ROOT / ".git").exists():  # the package may be installed inside somebody else's checkout
        return version("fmnist-jobs")
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607 (git is wherever the user has it)
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version("fmnist-jobs")
    return f"{version('fmnist-jobs')}+{described}"
