"""Versions are read back as they were registered, including those of older releases."""

import json
from pathlib import Path

import pytest

from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import open_store


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(open_store(f"file://{tmp_path}/store"))


def register(registry: ModelRegistry, temperature: float) -> None:
    registry.register(
        run_id="run",
        epoch=1,
        weights_sha256="0" * 64,
        metrics={},
        parameters={},
        data_version="tests",
        temperature=temperature,
    )


@pytest.mark.parametrize("temperature", [0.05, 1.0, 1.0167711771549401])
def test_temperature_is_read_back_exactly(registry: ModelRegistry, temperature: float):
    register(registry, temperature)
    assert registry.version(1).temperature == temperature


def test_temperature_of_an_older_version_is_1(registry: ModelRegistry, tmp_path: Path):
    register(registry, 3.0)
    [path] = (tmp_path / "store").rglob("00000001.json")
    record = json.loads(path.read_text())
    del record["temperature"]
    path.write_text(json.dumps(record))
    assert registry.version(1).temperature == 1.0
