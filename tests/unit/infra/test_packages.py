"""Every list of the project's packages names the same four."""

import tomllib
from typing import Any

import pytest

from infra.packages import PACKAGES, ROOT


@pytest.fixture
def tools() -> Any:
    """The `tool` tables of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


def test_packages_are_the_folders_of_the_checkout() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} == set(PACKAGES)


def test_setuptools_installs_the_packages(tools: Any) -> None:
    assert set(tools["setuptools"]["packages"]["find"]["include"]) == {f"{name}*" for name in PACKAGES}


def test_mypy_checks_the_packages(tools: Any) -> None:
    assert set(tools["mypy"]["packages"]) == set(PACKAGES)


def test_import_linter_knows_the_packages(tools: Any) -> None:
    assert set(tools["importlinter"]["root_packages"]) == set(PACKAGES)
