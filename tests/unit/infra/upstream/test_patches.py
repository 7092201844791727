"""Check that every patch of Ray or Prefect follows the policy, and that its targets still exist."""

import importlib
import pkgutil
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import infra.upstream

HEADINGS = ("Changes:", "Why:", "Gain:", "Upstream:", "Remove:", "If gone:", "Test:")
PATCHES = [
    importlib.import_module(f"infra.upstream.{found.name}") for found in pkgutil.iter_modules(infra.upstream.__path__)
]
ROOT = Path(__file__).parents[4]


def names(patch: ModuleType) -> str:
    return patch.__name__.rpartition(".")[2]


@pytest.mark.parametrize("patch", PATCHES, ids=names)
def test_patch_has_every_heading_of_the_policy(patch: ModuleType) -> None:
    found = [heading for heading in HEADINGS if re.search(rf"^{heading} +\S", patch.__doc__ or "", re.MULTILINE)]
    assert found == list(HEADINGS)


@pytest.mark.parametrize("patch", PATCHES, ids=names)
def test_tests_of_a_patch_exist(patch: ModuleType) -> None:
    named = re.findall(r"tests/[\w/]+\.py", patch.__doc__ or "")
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "target", [target for patch in PATCHES for target in patch.TARGETS], ids=lambda target: target.rpartition(":")[2]
)
def test_target_of_a_patch_exists(target: str) -> None:
    module, _, path = target.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)


@pytest.mark.parametrize("library", ["ray", "prefect"])
def test_patched_library_is_capped_at_its_minor_version(library: str) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [found] = [line for line in dependencies if re.match(rf"{library}\b(?!-)", line)]
    lowest, highest = re.findall(r"(\d+)\.(\d+)", found)
    assert (int(highest[0]), int(highest[1])) == (int(lowest[0]), int(lowest[1]) + 1)
