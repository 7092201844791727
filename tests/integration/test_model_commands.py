"""Run `fmnist models` to list and promote versions, and `fmnist describe` with them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_model.network import NeuralNetwork, save_weights
from infra.storage.checkpoints import write_checkpoint
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import ObjectStore, open_store
from tests.unit.tasks.classification.image_inputs import png


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """Make a store with two versions: the champion with a test accuracy of 90 %, and version 2 with 80 %."""
    store = open_store(f"file://{tmp_path}/store")
    registry = ModelRegistry(store)
    for run_id, accuracy in (("first", 0.9), ("second", 0.8)):
        files = {"model.safetensors": save_weights(NeuralNetwork())}
        checkpoint = write_checkpoint(
            store, run_id=run_id, epoch=1, files=files, metrics={}, parameters={}, data_version="data"
        )
        registry.register(
            run_id=run_id,
            epoch=1,
            weights_sha256=checkpoint.files[0].sha256,
            metrics={"test_accuracy": accuracy, "test_calibration_error": 0.0125},
            parameters={},
            data_version="data",
            temperature=1.7,
        )
    registry.point("champion", 1)
    return store


def fmnist(store: ObjectStore, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = Path(sys.executable).parent / "fmnist"
    environment = {"FMNIST_STORE": store.root, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    return subprocess.run(
        [command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def models(store: ObjectStore, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return fmnist(store, "models", *arguments)


def test_worse_version_is_not_promoted(store: ObjectStore) -> None:
    refused = models(store, "promote", "2")
    assert refused.returncode == 2
    assert all(words in refused.stderr for words in ("Version 2", "80.00%", "version 1", "90.00%", "--force"))
    assert ModelRegistry(store).resolve("champion").version == 1


def test_forced_promotion_records_its_origin(store: ObjectStore) -> None:
    promoted = json.loads(models(store, "promote", "2", "--force", "--json").stdout)
    assert (promoted["version"], promoted["previous"]) == (2, 1)
    assert "@" in promoted["provenance"]["created_by"]
    assert ModelRegistry(store).resolve("champion").version == 2


def test_version_with_changed_weights_cannot_be_promoted(store: ObjectStore) -> None:
    path = Path(store.root.removeprefix("file://")) / "runs/second/checkpoints/epoch-0001/model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    refused = models(store, "promote", "2", "--force")
    assert refused.returncode == 1
    assert path.name in refused.stderr
    assert "SHA-256" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert ModelRegistry(store).resolve("champion").version == 1


def test_list_names_the_champion(store: ObjectStore) -> None:
    listed = json.loads(models(store, "list", "--json").stdout)
    assert listed["aliases"] == {"champion": 1}
    assert [version["version"] for version in listed["versions"]] == [2, 1]


def test_show_names_the_checkpoint(store: ObjectStore) -> None:
    shown = json.loads(models(store, "show", "2", "--json").stdout)
    assert shown["checkpoint"] == f"{store.root}/runs/second/checkpoints/epoch-0001"


def test_show_prints_calibration_error_and_temperature(store: ObjectStore) -> None:
    rows = [line.split() for line in models(store, "show", "2").stdout.splitlines()]
    assert ["metrics.test_calibration_error", "0.0125"] in rows
    assert ["temperature", "1.7"] in rows


def described(store: ObjectStore, *arguments: str) -> tuple[float, dict[str, list[float]]]:
    """Return the temperature and the only image's description from `fmnist describe`."""
    shown = json.loads(fmnist(store, "describe", *arguments, "--json").stdout.splitlines()[-1])
    return shown["temperature"], shown["images"][0]


def test_describe_uses_the_versions_temperature(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    image = str(tmp_path / "a.png")
    for arguments, temperature in (((), 1.7), (("--no-calibrate",), 1.0), (("--model", "first/1"), 1.0)):
        found, description = described(store, image, *arguments)
        expected = np.exp(np.array(description["logits"]) / temperature)
        assert found == temperature
        assert description["probabilities"] == pytest.approx(expected / expected.sum(), rel=1e-5)
