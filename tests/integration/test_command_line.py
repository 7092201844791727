"""The `fmnist` command as a person types it: its words, its exit codes, and that it leaves nothing running."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.harness.commands import descendants, fmnist, one_clear_line, started, wait_until_gone


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--epochs", "0"], "--epochs: must be greater than or equal to 1, not '?0'?"),
        (["train", "--workers", "0"], "--workers: must be a number of workers from 1 up"),
        (["train", "--workers=-1"], "--workers: must be a number of workers from 1 up"),
        (["train", "--workers", "9999"], "9999 workers need 9999 CPUs or GPUs, but there are"),
        (["train", "--workers", "3:1"], "the range 3:1 ends before it begins"),
        (["train", "--preset", "slow"], "--preset"),
        (["train", "--resume", "nonesuch"], "no run nonesuch with a complete checkpoint"),
        (["train", "--resume", "../../etc"], "is no run id"),
        (["train", "--from-model", "champion"], "has no champion"),
        (["train", "--from-model", "7"], "version 7"),
        (["train", "--from-model", "1", "--resume", "r"], "leave out either resume or from_model"),
        (["train", "--validation-images", "-1"], "--validation-images: must be greater than or equal to 0"),
        (["classify", "nonesuch", "--table", "t"], "nonesuch: there is no such file or folder"),
        (["classify", "--table", "t"], "name at least one image"),
        (["classify", "x"], "--table"),
        (["classify", "x", "--table", "../up"], "--table: must match"),
        (["classify", "x", "--table", "t", "--max-error-share", "2"], "--max-error-share: must be less than or equal"),
        (["describe", "--model", "99"], "no version 99"),
        (["describe", "--model", "nonesuch"], "'nonesuch' is no version's number"),
        (["models", "show", "champion"], "no champion yet"),
        (["models", "promote", "7"], "no version 7"),
        (["predictions", "show", "nonesuch"], "no committed batch in a table 'nonesuch'"),
        (["trian"], 'Did you mean "train"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_request_is_one_clear_line_and_exit_code_2(
    arguments: list[str], expected: str, own_store: dict[str, str]
) -> None:
    result = fmnist(*arguments, **own_store)
    assert re.search(expected, one_clear_line(result))
    assert result.returncode == 2


def test_ray_address_where_nothing_listens(own_store: dict[str, str]) -> None:
    result = fmnist("train", FMNIST_RAY_ADDRESS="127.0.0.1:1", **own_store)
    assert "nothing listens at 127.0.0.1:1" in one_clear_line(result)
    assert result.returncode == 2


def test_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = fmnist("train", FMNIST_STORE=str(tmp_path / "file"))
    assert "can't be written" in one_clear_line(result)
    assert result.returncode == 2


def test_store_that_nobody_may_write() -> None:
    result = fmnist("train", FMNIST_STORE="/proc/store")
    assert "can't be written" in one_clear_line(result)
    assert result.returncode == 2


def test_state_folder_that_nobody_may_write(own_store: dict[str, str]) -> None:
    result = fmnist("train", **(own_store | {"FMNIST_STATE_DIR": "/proc/state"}))
    assert "FMNIST_STATE_DIR: /proc/state can't be written" in one_clear_line(result)
    assert result.returncode == 2


def test_truncated_source_file_is_refused_by_name_and_leaves_no_data_set(tmp_path: Path) -> None:
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (tmp_path / name).write_bytes(b"\0\0\x08\x03" + (5).to_bytes(4, "big"))
    store = tmp_path / "store"
    result = fmnist("train", FMNIST_STORE=str(store), FMNIST_DATASET_DIR=str(tmp_path))
    assert re.search("train-images-idx3-ubyte is truncated", one_clear_line(result))
    assert result.returncode == 2
    assert not list(store.rglob("dataset.json"))


def test_data_folder_that_is_missing(tmp_path: Path) -> None:
    result = fmnist("dataset", "prepare", FMNIST_STORE=str(tmp_path / "store"), FMNIST_DATASET_DIR=str(tmp_path / "no"))
    assert "FMNIST_DATASET_DIR" in one_clear_line(result)
    assert result.returncode == 2


def test_image_that_is_no_image(tmp_path: Path, own_store: dict[str, str]) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    result = fmnist("describe", str(tmp_path / "notes.png"), "--model", "fresh", **own_store)
    assert "notes.png can't be used: not an image" in one_clear_line(result)
    assert result.returncode == 2


def test_checkpoint_of_another_shape_is_refused_before_anything_starts(
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
        assert "weights of another network" in one_clear_line(result)
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


def test_run_interrupted_before_its_first_checkpoint_is_not_said_to_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli.main import way_on

    monkeypatch.setenv("FMNIST_STORE", str(tmp_path))
    assert way_on("2026-11-23T00-00-00-0000") == "The run had no checkpoint yet: begin it again."


@pytest.mark.slow
def test_interrupted_run_exits_130_leaves_nothing_running_and_can_be_resumed(
    own_store: dict[str, str], tmp_path: Path
) -> None:
    # The first checkpoint is written during the second epoch, and is whole before the second is begun.
    with started("train", "--preset", "quick", "--epochs", "200", wait_for="epoch 3/", **own_store) as process:
        children = descendants(process)
        os.kill(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Interrupted. Its checkpoints are kept; `fmnist train --resume " in errors
    assert "Traceback" not in errors
    assert wait_until_gone(children, 20) == []
    [run] = (tmp_path / "store" / "runs").iterdir()
    assert list(run.glob("checkpoints/epoch-*/checkpoint.json"))
