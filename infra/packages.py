"""The project's own packages, and where they are."""

import os
from pathlib import Path

PACKAGES = ("flows", "tasks", "fmnist_model", "infra")
"""Names of the top-level packages. pyproject.toml repeats them, and a test compares the two."""

ROOT = Path(__file__).parents[1]
"""Folder that holds the packages: a checkout, or site-packages."""


def child_environment() -> dict[str, str]:
    """Return the environment for a `python -m` process that must find these packages, whatever folder it starts in.

    By default, Python searches the current folder first. A `tasks.py` or a `random.py` there would be imported instead.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    paths = [*search_paths(), *filter(None, [os.environ.get("PYTHONPATH")])]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def search_paths() -> list[str]:
    """Return the folders that a process must search first to find these packages. There are none if it does anyway."""
    # Installed packages are found last. Put first, all that is installed would come before the standard library.
    return [] if ROOT.name in ("site-packages", "dist-packages") else [str(ROOT)]
