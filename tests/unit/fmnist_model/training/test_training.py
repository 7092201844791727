"""Training learns, repeats itself to the bit, and goes on where it stood."""

import io
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork, load_weights, save_weights
from fmnist_model.training.augmentation import Augmentation, scale
from fmnist_model.training.loop import StepProgress, TrainingDiverged, TrainingRun
from fmnist_model.training.recipe import TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes, vector
from tests.unit.fmnist_model.training.toy_training import CPU, RECIPE, train, trained

NOT_AVERAGED = replace(RECIPE, weight_averaging=0.0)

# Learning


def test_loss_falls_epoch_by_epoch():
    losses = [epoch.loss for epoch in trained(RECIPE)[1]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 5


def test_separable_classes_are_learned():
    assert trained(RECIPE)[1][-1].accuracy > 0.99


def test_augmented_images_are_learned():
    assert train(replace(RECIPE, epochs=6, flip=True, shift_pixels=1))[1][-1].accuracy > 0.5


def test_epochs_are_numbered_from_one():
    assert [epoch.epoch for epoch in trained(RECIPE)[1]] == [1, 2, 3]


def test_first_loss_is_of_the_seeded_network():
    data = stripes(64)
    torch.manual_seed(RECIPE.seed)
    logits = NeuralNetwork()(scale(torch.from_numpy(data.images)))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels)).item()
    assert train(replace(RECIPE, epochs=1), data)[1][0].loss == pytest.approx(expected, rel=1e-5)


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(replace(RECIPE, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_training_leaves_the_data_alone():
    data = stripes()
    train(replace(RECIPE, epochs=1, flip=True, shift_pixels=2), data)
    np.testing.assert_array_equal(data.images, stripes().images)


@pytest.mark.parametrize("steps", range(1, 9))
def test_run_of_a_few_steps_has_a_schedule(steps: int):
    run, epochs = train(replace(RECIPE, epochs=steps, global_batch_size=600))
    assert len(epochs) == run.epochs_done == steps


def test_batch_larger_than_the_data_set_is_the_data_set():
    run, epochs = train(replace(RECIPE, epochs=1, global_batch_size=10_000))
    assert (run.steps_per_epoch, epochs[0].images) == (1, 600)


def test_incomplete_last_batch_is_left_out():
    run, epochs = train(replace(RECIPE, epochs=1, global_batch_size=64))
    assert (run.steps_per_epoch, epochs[0].images) == (9, 576)


def test_huge_learning_rate_is_told_as_divergence():
    with pytest.raises(
        TrainingDiverged, match=r"The loss became (nan|inf) in epoch 1, step \d+\. Lower the learning rate \(1e\+16\)"
    ):
        train(replace(RECIPE, learning_rate=1e16))


def test_diverged_epoch_does_not_count_as_done():
    run = TrainingRun(replace(RECIPE, learning_rate=1e16), stripes(), CPU)
    with pytest.raises(TrainingDiverged):
        list(run.epochs())
    assert run.epochs_done == 0


def test_loss_far_above_that_of_guessing_is_told_as_divergence():
    recipe = replace(RECIPE, learning_rate=3.0, epochs=20)
    with pytest.raises(TrainingDiverged, match=r"The loss of epoch \d+ is .* three times that of guessing; it was"):
        list(TrainingRun(recipe, stripes(), CPU).epochs())


@pytest.mark.parametrize("validation", [None, stripes(20)], ids=["none held out", "some held out"])
def test_weights_ruined_by_the_last_step_of_an_epoch_are_told_as_divergence(validation: LabelledImages | None):
    recipe = replace(
        RECIPE, learning_rate=1e38, output_learning_rate_share=100, global_batch_size=600
    )  # a step an epoch
    run = TrainingRun(recipe, stripes(), CPU, validation=validation)
    with pytest.raises(TrainingDiverged, match=r"The weights are not all finite after epoch 1, step 1\. Lower the"):
        list(run.epochs())
    assert run.epochs_done == 0


def test_validation_loss_that_is_no_number_is_told_as_divergence():
    """Finite weights, so large that the logits are not."""
    recipe = replace(RECIPE, learning_rate=1e38, global_batch_size=600)
    with pytest.raises(TrainingDiverged, match=r"The validation loss became (nan|inf) in epoch 1, step 1\. Lower the"):
        list(TrainingRun(recipe, stripes(), CPU, validation=stripes(20)).epochs())


class Asked(TorchDispatchMode):
    """Counts how often Python is told the value of a tensor; on a GPU, it waits there for all that was begun."""

    times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_step_waits_for_no_value():
    run = TrainingRun(RECIPE, stripes(), CPU)
    images, labels = run._gather(*run._draw(1))
    with Asked() as asked:
        for step in range(2):
            run._step.take(images[step], labels[step], RECIPE.learning_rate)
        assert asked.times == 0
        images.sum().item()
    assert asked.times == 1


def test_step_losses_are_the_epochs_loss():
    for epoch in trained(RECIPE)[1]:
        assert len(epoch.step_losses) == len(epoch.step_learning_rates) == 9
        assert epoch.step_losses.mean() == pytest.approx(epoch.loss)


def test_learning_rate_rises_and_falls():
    rates = np.concatenate([epoch.step_learning_rates for epoch in train(replace(RECIPE, epochs=10), stripes(128))[1]])
    peak = int(rates.argmax())
    assert peak == 4
    assert rates[peak] == RECIPE.learning_rate
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] < RECIPE.learning_rate / 100


# Validation


def test_validation_is_of_the_averaged_weights_and_of_the_images_as_they_are():
    recipe, validation = replace(RECIPE, epochs=1, flip=True, shift_pixels=2), stripes(70)
    run = TrainingRun(recipe, stripes(), CPU, validation=validation)
    [epoch] = run.epochs()
    with torch.inference_mode():
        logits = run.network(scale(torch.from_numpy(validation.images)))
    labels = torch.from_numpy(validation.labels)
    assert epoch.validation_loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert epoch.validation_accuracy == pytest.approx(logits.argmax(1).eq(labels).float().mean().item())


def test_run_without_validation_images_has_no_validation_figures():
    [epoch] = trained(replace(RECIPE, epochs=1))[1]
    assert (epoch.validation_loss, epoch.validation_accuracy) == (None, None)


def test_validation_images_are_not_learned():
    recipe = replace(RECIPE, epochs=1)
    others = LabelledImages(255 - stripes(50).images, stripes(50).labels)
    runs = [TrainingRun(recipe, stripes(), CPU, validation=validation) for validation in (stripes(50), others)]
    assert all(list(run.epochs()) for run in runs)
    assert torch.equal(vector(runs[0].network), vector(runs[1].network))


# Weights to begin with, and their average


def test_run_begins_with_the_weights_it_is_given():
    initial = trained(RECIPE)[0].network
    [epoch] = TrainingRun(replace(RECIPE, epochs=1, learning_rate=1e-20), stripes(), CPU, initial=initial).epochs()
    assert epoch.accuracy > 0.99


def test_average_keeps_what_the_recipe_says_once_there_are_steps_enough():
    newest, average = [], None
    run = TrainingRun(replace(RECIPE, epochs=30, weight_averaging=0.75), stripes(64), CPU)  # a step an epoch
    for epoch in run.epochs():
        newest.append(torch.nn.utils.parameters_to_vector(run._step.network.parameters()).detach().clone())
        kept = min(0.75, epoch.epoch / (9 + epoch.epoch))
        average = newest[-1] if average is None else kept * average + (1 - kept) * newest[-1]
        torch.testing.assert_close(vector(run.network), average, rtol=1e-4, atol=1e-6)


def test_run_without_an_average_keeps_the_weights_themselves():
    """Averaging changes what is kept, and not where the weights go."""
    averaged, plain = trained(RECIPE)[0], trained(NOT_AVERAGED)[0]
    assert torch.equal(vector(plain.network), vector(averaged._step.network))
    assert not torch.equal(vector(plain.network), vector(averaged.network))


# Repeating


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, flip=True, shift_pixels=2)], ids=["plain", "augmented"])
def test_same_seed_gives_the_same_weights(recipe: TrainingRecipe):
    assert torch.equal(vector(train(recipe)[0].network), vector(trained(recipe)[0].network))


def test_other_seed_gives_other_weights():
    first, second = (vector(trained(replace(RECIPE, seed=seed))[0].network) for seed in (5, 6))
    assert not torch.equal(first, second)


def test_other_seed_changes_the_order_and_not_only_the_initial_weights():
    recipes = [replace(RECIPE, epochs=1, seed=seed) for seed in (5, 6)]
    losses = [next(TrainingRun(recipe, stripes(), CPU, initial=NeuralNetwork()).epochs()).loss for recipe in recipes]
    assert losses[0] != losses[1]


def test_every_epoch_has_an_order_of_its_own():
    """At a learning rate too small to change a weight, losses differ by which images the last batch leaves out."""
    losses = {epoch.loss for epoch in train(replace(RECIPE, learning_rate=1e-20))[1]}
    assert len(losses) == RECIPE.epochs


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


def test_state_of_a_finished_run_leaves_nothing_to_train():
    run, _ = trained(RECIPE)
    resumed = TrainingRun(RECIPE, stripes(), CPU).load_state(run.network, run.snapshot().state())
    assert list(resumed.epochs()) == []


@pytest.mark.parametrize(
    "change", [{"epochs": 4}, {"learning_rate": 1e-3}, {"seed": 6}, {"flip": True}, {"global_batch_size": 32}]
)
def test_state_of_another_recipe_is_refused(change: dict[str, Any]):
    run, _ = trained(replace(RECIPE, epochs=1))
    other = TrainingRun(replace(RECIPE, **{"epochs": 1} | change), stripes(), CPU)
    with pytest.raises(ValueError, match="of another recipe"):
        other.load_state(run.network, run.snapshot().state())


def test_state_of_a_run_on_another_number_of_images_is_refused():
    run = TrainingRun(RECIPE, stripes(), CPU)
    with pytest.raises(ValueError, match="of a run of 9 steps an epoch; on these images it is 15"):
        TrainingRun(RECIPE, stripes(1000), CPU).load_state(run.network, run.snapshot().state())


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "state",
    [b"", b"not a state", saved([1, 2]), saved({}), saved({"recipe": asdict(RECIPE)}), saved(torch.zeros(3))],
    ids=["empty", "text", "list", "empty dict", "recipe alone", "tensor"],
)
def test_what_is_no_state_is_refused(state: bytes):
    with pytest.raises(ValueError, match="The training state can't be read"):
        TrainingRun(RECIPE, stripes(), CPU).load_state(NeuralNetwork(), state)


def test_truncated_state_is_refused():
    run = TrainingRun(RECIPE, stripes(), CPU)
    state = run.snapshot().state()
    with pytest.raises(ValueError, match="The training state can't be read"):
        run.load_state(run.network, state[: len(state) // 2])


def test_refused_state_leaves_the_run_as_it_was():
    run = TrainingRun(RECIPE, stripes(), CPU)
    before = vector(run.network).clone()
    with pytest.raises(ValueError, match="can't be read"):
        run.load_state(NeuralNetwork(), saved({"recipe": asdict(RECIPE)}))
    assert torch.equal(vector(run.network), before)


class Planted:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


@pytest.mark.parametrize("encode", [pickled, saved])
def test_malicious_pickle_as_state_is_refused_and_not_executed(tmp_path: Path, encode: Callable[[Any], bytes]):
    planted = tmp_path / "planted"
    state = encode({"recipe": asdict(RECIPE), "epochs_done": 1, "optimizers": [Planted(planted)], "network": {}})
    with pytest.raises(ValueError, match="The training state can't be read"):
        TrainingRun(RECIPE, stripes(), CPU).load_state(NeuralNetwork(), state)
    assert not planted.exists()
    pickle.loads(state) if encode is pickled else torch.load(io.BytesIO(state), weights_only=False)  # noqa: S301
    assert planted.exists(), "the pickle was not armed, so the test above shows nothing"


@pytest.mark.parametrize("recipe", [RECIPE, NOT_AVERAGED], ids=["averaged", "not averaged"])
def test_snapshot_stays_what_it_was_while_training_goes_on(recipe: TrainingRecipe):
    run = TrainingRun(recipe, stripes(), CPU)
    epochs = run.epochs()
    next(epochs)
    snapshot = run.snapshot()
    weights, state = save_weights(run.network), snapshot.state()
    next(epochs)
    assert (snapshot.weights(), snapshot.state()) == (weights, state)
    assert run.snapshot().state() != state
    assert run.snapshot().weights() != weights


def test_snapshot_holds_weights_twice_only_where_they_are_averaged():
    averaged, plain = (TrainingRun(recipe, stripes(), CPU).snapshot() for recipe in (RECIPE, NOT_AVERAGED))
    assert len(averaged.weights()) == len(plain.weights())
    assert len(averaged.state()) - len(plain.state()) == pytest.approx(len(plain.weights()), rel=0.01)


@pytest.mark.parametrize("recipe", [RECIPE, NOT_AVERAGED], ids=["averaged", "not averaged"])
def test_snapshot_in_the_memory_of_an_earlier_one_is_like_one_of_its_own(recipe: TrainingRecipe):
    run = TrainingRun(recipe, stripes(), CPU)
    epochs = run.epochs()
    next(epochs)
    early = run.snapshot()
    before = early.state()
    next(epochs)
    fresh, late = run.snapshot(), run.snapshot(into=early)
    assert (late.weights(), late.state()) == (fresh.weights(), fresh.state())
    assert before != late.state(), "what was read of the early one has changed with it"


def test_run_goes_on_without_a_graph_that_can_not_be_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refused(*_: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr("fmnist_model.training.loop.CapturedStep", refused)
    run = TrainingRun(RECIPE, stripes(), CPU)
    run._captures = True  # as on a GPU
    assert len(list(run.epochs())) == RECIPE.epochs
    assert caplog.messages == ["The steps are not replayed as a CUDA graph, and take longer: operation not permitted"]


# Progress


@pytest.fixture(params=[0.0, 60.0], ids=["after each step", "at the end"])
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[StepProgress]:
    """Progress of a run that may be told of each step, or of the last alone."""
    monkeypatch.setattr("fmnist_model.training.loop._TOLD_SECONDS", request.param)
    progress: list[StepProgress] = []
    list(TrainingRun(RECIPE, stripes(), CPU).epochs(progress.append))
    return progress


def test_progress_never_goes_back(told: list[StepProgress]):
    steps = [(progress.epoch, progress.step) for progress in told]
    assert steps == sorted(set(steps))


def test_progress_ends_at_the_last_step(told: list[StepProgress]):
    last = told[-1]
    assert (last.step, last.epoch) == (last.steps, last.epochs) == (27, 3)


def test_progress_at_the_end_of_an_epoch_is_the_epochs_outcome(told: list[StepProgress]):
    epoch = trained(RECIPE)[1][-1]
    assert (told[-1].loss, told[-1].accuracy) == (epoch.loss, epoch.accuracy)


def test_progress_is_not_told_more_often_than_can_be_read(monkeypatch: pytest.MonkeyPatch):
    """However short the epochs: on a GPU they are over in milliseconds."""
    monkeypatch.setattr("fmnist_model.training.loop._TOLD_SECONDS", 60.0)
    progress: list[StepProgress] = []
    list(TrainingRun(replace(RECIPE, epochs=20), stripes(64), CPU).epochs(progress.append))
    assert len(progress) == 1


# Augmentation


def augmented(images: Tensor, *, flip: bool = False, shift_pixels: int = 0) -> tuple[Tensor, Tensor]:
    """What becomes of each of the images, and what was drawn for it."""
    augmentation = Augmentation(images, flip=flip, shift_pixels=shift_pixels)
    drawn = augmentation.draw(torch.arange(len(images)), torch.Generator().manual_seed(3))
    return augmentation.take(drawn), drawn


def noise(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8)


def test_slices_are_augmented_as_the_whole_epoch_is():
    augmentation = Augmentation(noise(7), flip=True, shift_pixels=2)
    drawn = augmentation.draw(torch.randperm(7), torch.Generator())
    assert torch.equal(
        torch.cat([augmentation.take(part) for part in (drawn[:3], drawn[3:])]), augmentation.take(drawn)
    )


def test_images_are_taken_in_the_order_asked_for():
    images = noise(5)
    augmentation = Augmentation(images, flip=False, shift_pixels=0)
    order = torch.tensor([3, 0, 3, 4])
    assert torch.equal(augmentation.take(augmentation.draw(order, torch.Generator())), images[order])


def test_no_augmentation_changes_no_image():
    images = noise(5)
    assert torch.equal(augmented(images)[0], images)


def test_flipped_images_are_mirrored_left_and_right():
    images = noise(50)
    found, drawn = augmented(images, flip=True)
    expected = [image.flip(1) if number >= 50 else image for image, number in zip(images, drawn[:, 0], strict=True)]
    assert torch.equal(found, torch.stack(expected))


def test_about_half_of_the_images_are_flipped():
    assert 400 < (augmented(noise(1000), flip=True)[1][:, 0] >= 1000).sum() < 600


def test_shifted_image_is_the_image_moved_over_black():
    images = noise(50)
    found, drawn = augmented(images, shift_pixels=2)
    expected = torch.zeros(50, 32, 32, dtype=torch.uint8)
    for number, (_, row, column) in enumerate(drawn.tolist()):
        expected[number, 4 - row : 32 - row, 4 - column : 32 - column] = images[number]
    assert torch.equal(found, expected[:, 2:30, 2:30])


def test_shifts_reach_every_offset_in_the_range():
    assert sorted(set(augmented(noise(1000), shift_pixels=2)[1][:, 1:].flatten().tolist())) == [0, 1, 2, 3, 4]
