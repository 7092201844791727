"""Every list of the project's packages names the same four."""

import importlib
import tomllib
from typing import Any

import pytest
import yaml

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


def test_container_image_holds_the_packages() -> None:
    ignore = (ROOT / "infra/deploy/containers/Containerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} >= set(PACKAGES)


def test_deployments_start_functions_that_exist() -> None:
    deployments = yaml.safe_load((ROOT / "infra/deploy/prefect.yaml").read_text())["deployments"]
    for entrypoint in [deployment["entrypoint"] for deployment in deployments]:
        module, _, function = entrypoint.rpartition(".")
        assert module.partition(".")[0] in PACKAGES
        assert callable(getattr(importlib.import_module(module), function))
