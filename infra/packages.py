"""The project's own packages, and where they are."""

from pathlib import Path

PACKAGES = ("flows", "tasks", "fmnist_model", "infra")
"""Names of the top-level packages. pyproject.toml repeats them, and a test compares the two."""

ROOT = Path(__file__).parents[1]
"""Folder that holds the packages: a checkout, or site-packages."""
