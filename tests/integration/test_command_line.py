"""The `fmnist` command as a user types it: its messages and exit codes. It leaves no process behind."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.harness.commands import descendants, fmnist, one_clear_line, started, wait_until_gone


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--epochs", "0"], ["--epochs:", "1", "0"]),
        (["train", "--epochs", "few"], ["--epochs:", "integer", "few"]),
        (["train", "--workers", "0"], ["--workers:", "MIN:MAX", "auto", "0"]),
        (["train", "--workers=-1"], ["--workers:", "MIN:MAX", "auto", "-1"]),
        (["train", "--workers", "9999"], ["9999"]),
        (["train", "--workers", "3:1"], ["3:1"]),
        (["train", "--preset", "slow"], ["--preset:", "quick", "full", "slow"]),
        (["train", "--resume", "nonesuch"], ["nonesuch"]),
        (["train", "--resume", "../../etc"], ["../../etc"]),
        (["train", "--from-model", "champion"], ["champion"]),
        (["train", "--from-model", "7"], ["version 7"]),
        (["train", "--from-model", "1", "--resume", "r"], ["from_model", "resume"]),
        (["train", "--validation-images", "-1"], ["--validation-images:", "0", "-1"]),
        (["classify", "nonesuch", "--table", "t"], ["nonesuch"]),
        (["classify", "--table", "t"], ["URI:"]),
        (["classify", "x"], ["--table"]),
        (["classify", "x", "--table", "../up"], ["--table:", "../up"]),
        (["classify", "x", "--table", "t", "--max-error-share", "2"], ["--max-error-share:", "1", "2"]),
        (["describe", "--model", "99"], ["version 99"]),
        (["describe", "--model", "nonesuch"], ["--model:", "nonesuch", "champion", "fresh"]),
        (["models", "show", "champion"], ["champion"]),
        (["models", "promote", "7"], ["version 7"]),
        (["predictions", "show", "nonesuch"], ["'nonesuch'"]),
        (["trian"], ["trian", "train"]),
    ],
    ids=" ".join,
)
def test_wrong_request_is_one_line_that_names_the_option_and_exits_with_2(
    arguments: list[str], parts: list[str], own_store: dict[str, str]
) -> None:
    result = fmnist(*arguments, **own_store)
    line = one_clear_line(result)
    assert [part for part in parts if part not in line] == []
    assert result.returncode == 2


def test_resumed_run_keeps_its_seed(own_store: dict[str, str], tmp_path: Path) -> None:
    from fmnist_model.training.recipe import PRESETS
    from infra.storage.checkpoints import write_checkpoint
    from infra.storage.object_store import open_store

    store = open_store((tmp_path / "store").as_uri())
    recipe = replace(PRESETS["quick"], seed=7).to_record()
    write_checkpoint(
        store, run_id="seven", epoch=1, files={"state": b""}, metrics={}, parameters=recipe, data_version=""
    )
    result = fmnist("train", "--resume", "seven", "--seed", "0", **own_store)
    line = one_clear_line(result)
    assert [part for part in ("seven", "seed 7", "not 0") if part not in line] == []
    assert result.returncode == 2


def test_ray_address_without_a_cluster_is_refused(own_store: dict[str, str]) -> None:
    result = fmnist("train", FMNIST_RAY_ADDRESS="127.0.0.1:1", **own_store)
    assert "127.0.0.1:1" in one_clear_line(result)
    assert result.returncode == 2


def test_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = fmnist("train", FMNIST_STORE=str(tmp_path / "file"))
    assert str(tmp_path / "file") in one_clear_line(result)
    assert result.returncode == 2


def test_read_only_store_is_refused() -> None:
    result = fmnist("train", FMNIST_STORE="/proc/store")
    assert "/proc/store" in one_clear_line(result)
    assert result.returncode == 2


def test_read_only_state_folder_is_refused(own_store: dict[str, str]) -> None:
    result = fmnist("train", **(own_store | {"FMNIST_STATE_DIR": "/proc/state"}))
    assert "FMNIST_STATE_DIR: /proc/state" in one_clear_line(result)
    assert result.returncode == 2


def test_truncated_source_file_is_named_and_leaves_no_dataset(tmp_path: Path) -> None:
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (tmp_path / name).write_bytes(b"\0\0\x08\x03" + (5).to_bytes(4, "big"))
    store = tmp_path / "store"
    result = fmnist("train", FMNIST_STORE=str(store), FMNIST_DATASET_DIR=str(tmp_path))
    assert "train-images-idx3-ubyte" in one_clear_line(result)
    assert result.returncode == 2
    assert not list(store.rglob("dataset.json"))


def test_missing_data_folder_is_refused(tmp_path: Path) -> None:
    result = fmnist("dataset", "prepare", FMNIST_STORE=str(tmp_path / "store"), FMNIST_DATASET_DIR=str(tmp_path / "no"))
    assert "FMNIST_DATASET_DIR" in one_clear_line(result)
    assert result.returncode == 2


def test_file_that_is_not_an_image_is_refused(tmp_path: Path, own_store: dict[str, str]) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    result = fmnist("describe", str(tmp_path / "notes.png"), "--model", "fresh", **own_store)
    assert "notes.png" in one_clear_line(result)
    assert result.returncode == 2


def test_weights_of_another_network_are_refused_before_anything_starts(
    own_store: dict[str, str], tmp_path: Path
) -> None:
    from infra.storage.checkpoints import write_checkpoint
    from infra.storage.model_registry import ModelRegistry
    from infra.storage.object_store import open_store

    store = open_store((tmp_path / "store").as_uri())
    weights = save({"linear_relu_stack.0.weight": np.zeros((5, 5), np.float32)})
    checkpoint = write_checkpoint(
        store, run_id="other", epoch=1, files={"model.safetensors": weights}, metrics={}, parameters={}, data_version=""
    )
    registry = ModelRegistry(store)
    registry.register(
        run_id="other",
        epoch=1,
        weights_sha256=checkpoint.files[0].sha256,
        metrics={"test_accuracy": 1.0},
        parameters={},
        data_version="",
    )
    registry.point("champion", 1)
    images = str(tmp_path / "store" / "datasets" / "fashion-mnist" / "test")
    for command in (["classify", images, "--table", "t"], ["describe"], ["models", "promote", "1"]):
        result = fmnist(*command, **own_store)
        assert "runs/other/checkpoints/epoch-0001" in one_clear_line(result)
        assert result.returncode == 2
    assert not (tmp_path / "store" / "predictions").exists()


def test_help_of_every_command_names_every_option() -> None:
    from flows.parameters import ClassifyParameters, TrainParameters

    for command, model in (("train", TrainParameters), ("run", TrainParameters), ("classify", ClassifyParameters)):
        text = fmnist(command, "--help").stdout
        for name, default in model().model_dump().items():
            for field in default if isinstance(default, dict) else [name]:
                assert ("URI" if field == "inputs" else f"--{field.replace('_', '-')}") in text
    for command in ("classify", "describe"):
        assert "--no-calibrate" in fmnist(command, "--help").stdout
    for command in (
        ["describe"],
        ["models", "list"],
        ["models", "show"],
        ["models", "promote"],
        ["predictions", "list"],
    ):
        assert fmnist(*command, "--help").returncode == 0


def test_describe_shows_test_images_by_number_as_json(own_store: dict[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "bars.png"
    result = fmnist("describe", "0", "7", "--model", "fresh", "--json", "--plot", str(picture), **own_store)
    described = json.loads(result.stdout.splitlines()[-1])
    assert len(described["images"]) == 2
    assert described["total_parameters"] == 669_706
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_run_without_a_checkpoint_is_not_offered_for_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli.main import how_to_resume

    monkeypatch.setenv("FMNIST_STORE", str(tmp_path))
    assert "--resume" not in how_to_resume("2026-11-23T00-00-00-0000")


@pytest.mark.slow
def test_interrupted_run_exits_130_leaves_nothing_running_and_can_be_resumed(
    own_store: dict[str, str], tmp_path: Path
) -> None:
    # The first checkpoint is written during the second epoch, and complete before the third.
    with started("train", "--preset", "quick", "--epochs", "200", wait_for="epoch 3/", **own_store) as process:
        children = descendants(process)
        os.kill(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Interrupted. " in errors
    assert "`fmnist train --resume " in errors
    assert "Traceback" not in errors
    assert wait_until_gone(children, 20) == []
    [run] = (tmp_path / "store" / "runs").iterdir()
    assert list(run.glob("checkpoints/epoch-*/checkpoint.json"))
