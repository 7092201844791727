"""A resumed run continues from a snapshot as if it had never stopped, and refuses any other state."""

import io
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fmnist_model.network import NeuralNetwork, load_weights, save_weights
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes, vector
from tests.unit.fmnist_model.training.toy_training import CPU, RECIPE, trained

NOT_AVERAGED = replace(RECIPE, weight_averaging=0.0)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


class Planted:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# Resuming


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, replace(RECIPE, flip=True, shift_pixels=2), NOT_AVERAGED],
    ids=["plain", "augmented", "not averaged"],
)
@pytest.mark.parametrize("interrupted_after", [1, 2])
def test_resumed_run_ends_with_the_weights_of_an_undisturbed_one(recipe: TrainingRecipe, interrupted_after: int):
    interrupted = TrainingRun(recipe, stripes(), CPU)
    for epoch in interrupted.epochs():
        if epoch.epoch == interrupted_after:
            break
    weights = load_weights(save_weights(interrupted.network), "model.safetensors")
    resumed = TrainingRun(recipe, stripes(), CPU).load_state(weights, interrupted.snapshot().state())
    assert [epoch.epoch for epoch in resumed.epochs()] == list(range(interrupted_after + 1, recipe.epochs + 1))
    assert torch.equal(vector(resumed.network), vector(trained(recipe)[0].network))


def test_finished_run_has_nothing_left_to_train():
    run, _ = trained(RECIPE)
    resumed = TrainingRun(RECIPE, stripes(), CPU).load_state(run.network, run.snapshot().state())
    assert list(resumed.epochs()) == []


# Refused states


@pytest.mark.parametrize(
    "change", [{"epochs": 4}, {"learning_rate": 1e-3}, {"seed": 6}, {"flip": True}, {"global_batch_size": 32}]
)
def test_state_of_another_recipe_is_refused(change: dict[str, Any]):
    run, _ = trained(replace(RECIPE, epochs=1))
    other = TrainingRun(replace(RECIPE, **{"epochs": 1} | change), stripes(), CPU)
    with pytest.raises(ValueError, match="recipe"):
        other.load_state(run.network, run.snapshot().state())


def test_state_of_a_run_on_another_number_of_images_is_refused():
    run = TrainingRun(RECIPE, stripes(), CPU)
    with pytest.raises(ValueError, match=r"\b9 steps.* 15\b"):
        TrainingRun(RECIPE, stripes(1000), CPU).load_state(run.network, run.snapshot().state())


@pytest.mark.parametrize(
    "state",
    [b"", b"not a state", saved([1, 2]), saved({}), saved({"recipe": asdict(RECIPE)}), saved(torch.zeros(3))],
    ids=["empty", "text", "list", "empty dict", "recipe only", "tensor"],
)
def test_anything_but_a_state_is_refused(state: bytes):
    with pytest.raises(ValueError, match="can't be read"):
        TrainingRun(RECIPE, stripes(), CPU).load_state(NeuralNetwork(), state)


def test_truncated_state_is_refused():
    run = TrainingRun(RECIPE, stripes(), CPU)
    state = run.snapshot().state()
    with pytest.raises(ValueError, match="can't be read"):
        run.load_state(run.network, state[: len(state) // 2])


def test_refused_state_leaves_the_run_unchanged():
    run = TrainingRun(RECIPE, stripes(), CPU)
    before = vector(run.network).clone()
    with pytest.raises(ValueError, match="can't be read"):
        run.load_state(NeuralNetwork(), saved({"recipe": asdict(RECIPE)}))
    assert torch.equal(vector(run.network), before)


@pytest.mark.parametrize("encode", [pickled, saved])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, encode: Callable[[Any], bytes]):
    planted = tmp_path / "planted"
    state = encode({"recipe": asdict(RECIPE), "epochs_done": 1, "optimizers": [Planted(planted)], "network": {}})
    with pytest.raises(ValueError, match="can't be read"):
        TrainingRun(RECIPE, stripes(), CPU).load_state(NeuralNetwork(), state)
    assert not planted.exists()
    pickle.loads(state) if encode is pickled else torch.load(io.BytesIO(state), weights_only=False)  # noqa: S301
    assert planted.exists(), "the pickle does nothing, so this test proves nothing"


# Snapshots


@pytest.mark.parametrize("recipe", [RECIPE, NOT_AVERAGED], ids=["averaged", "not averaged"])
def test_snapshot_does_not_change_while_training_continues(recipe: TrainingRecipe):
    run = TrainingRun(recipe, stripes(), CPU)
    epochs = run.epochs()
    next(epochs)
    snapshot = run.snapshot()
    weights, state = save_weights(run.network), snapshot.state()
    next(epochs)
    assert (snapshot.weights(), snapshot.state()) == (weights, state)
    assert run.snapshot().state() != state
    assert run.snapshot().weights() != weights


def test_snapshot_holds_weights_twice_only_if_they_are_averaged():
    averaged, plain = (TrainingRun(recipe, stripes(), CPU).snapshot() for recipe in (RECIPE, NOT_AVERAGED))
    assert len(averaged.weights()) == len(plain.weights())
    assert len(averaged.state()) - len(plain.state()) == pytest.approx(len(plain.weights()), rel=0.01)


@pytest.mark.parametrize("recipe", [RECIPE, NOT_AVERAGED], ids=["averaged", "not averaged"])
def test_snapshot_in_reused_memory_equals_a_new_one(recipe: TrainingRecipe):
    run = TrainingRun(recipe, stripes(), CPU)
    epochs = run.epochs()
    next(epochs)
    early = run.snapshot()
    before = early.state()
    next(epochs)
    fresh, late = run.snapshot(), run.snapshot(into=early)
    assert (late.weights(), late.state()) == (fresh.weights(), fresh.state())
    assert before != late.state(), "bytes of the early snapshot changed with its memory"
