"""Training learns, and gives the same weights each time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork
from fmnist_model.training.augmentation import scale
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes, vector
from tests.unit.fmnist_model.training.toy_training import CPU, RECIPE, train, trained

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


def test_first_loss_is_that_of_the_seeded_network():
    data = stripes(64)
    torch.manual_seed(RECIPE.seed)
    logits = NeuralNetwork()(scale(torch.from_numpy(data.images)))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels)).item()
    assert train(replace(RECIPE, epochs=1), data)[1][0].loss == pytest.approx(expected, rel=1e-5)


def test_training_leaves_the_global_random_state_unchanged():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(replace(RECIPE, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_training_leaves_the_data_unchanged():
    data = stripes()
    train(replace(RECIPE, epochs=1, flip=True, shift_pixels=2), data)
    np.testing.assert_array_equal(data.images, stripes().images)


@pytest.mark.parametrize("steps", range(1, 9))
def test_run_of_a_few_steps_has_a_schedule(steps: int):
    run, epochs = train(replace(RECIPE, epochs=steps, global_batch_size=600))
    assert len(epochs) == run.epochs_done == steps


def test_batch_is_at_most_the_whole_data_set():
    run, epochs = train(replace(RECIPE, epochs=1, global_batch_size=10_000))
    assert (run.steps_per_epoch, epochs[0].images) == (1, 600)


def test_incomplete_last_batch_is_left_out():
    run, epochs = train(replace(RECIPE, epochs=1, global_batch_size=64))
    assert (run.steps_per_epoch, epochs[0].images) == (9, 576)


class Synchronizations(TorchDispatchMode):
    """Counts how often Python reads the value of a tensor. On a GPU, each read waits for all kernels before it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_step_does_not_synchronize_with_the_device():
    run = TrainingRun(RECIPE, stripes(), CPU)
    images, labels = run._batches.of_epoch(1)
    with Synchronizations() as synchronizations:
        for step in range(2):
            run._step.take(images[step], labels[step], RECIPE.learning_rate)
        assert synchronizations.count == 0
        images.sum().item()
    assert synchronizations.count == 1, "the counter doesn't work"


def test_mean_of_step_losses_is_the_loss_of_the_epoch():
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


def test_run_continues_if_the_graph_can_not_be_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr("fmnist_model.training.loop.CapturedStep", refuse)
    run = TrainingRun(RECIPE, stripes(), CPU)
    run._captures = True  # as on a GPU
    assert len(list(run.epochs())) == RECIPE.epochs
    [warning] = caplog.messages
    assert warning.endswith("operation not permitted")


# Validation


def test_validation_uses_averaged_weights_and_images_without_augmentation():
    recipe, validation = replace(RECIPE, epochs=1, flip=True, shift_pixels=2), stripes(70)
    run = TrainingRun(recipe, stripes(), CPU, validation=validation)
    [epoch] = run.epochs()
    with torch.inference_mode():
        logits = run.network(scale(torch.from_numpy(validation.images)))
    labels = torch.from_numpy(validation.labels)
    assert epoch.validation_loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert epoch.validation_accuracy == pytest.approx(logits.argmax(1).eq(labels).float().mean().item())


def test_run_without_validation_images_has_no_validation_metrics():
    [epoch] = trained(replace(RECIPE, epochs=1))[1]
    assert (epoch.validation_loss, epoch.validation_accuracy) == (None, None)


def test_validation_images_are_not_learned():
    recipe = replace(RECIPE, epochs=1)
    others = LabelledImages(255 - stripes(50).images, stripes(50).labels)
    runs = [TrainingRun(recipe, stripes(), CPU, validation=validation) for validation in (stripes(50), others)]
    assert all(list(run.epochs()) for run in runs)
    assert torch.equal(vector(runs[0].network), vector(runs[1].network))


# Initial weights and their average


def test_run_starts_with_the_given_weights():
    initial = trained(RECIPE)[0].network
    [epoch] = TrainingRun(replace(RECIPE, epochs=1, learning_rate=1e-20), stripes(), CPU, initial=initial).epochs()
    assert epoch.accuracy > 0.99


def test_average_follows_the_recipe_after_the_first_steps():
    newest, average = [], None
    run = TrainingRun(replace(RECIPE, epochs=30, weight_averaging=0.75), stripes(64), CPU)  # one step per epoch
    for epoch in run.epochs():
        newest.append(torch.nn.utils.parameters_to_vector(run._step.network.parameters()).detach().clone())
        kept = min(0.75, epoch.epoch / (9 + epoch.epoch))
        average = newest[-1] if average is None else kept * average + (1 - kept) * newest[-1]
        torch.testing.assert_close(vector(run.network), average, rtol=1e-4, atol=1e-6)


def test_averaging_does_not_change_the_trained_weights():
    averaged, plain = trained(RECIPE)[0], trained(replace(RECIPE, weight_averaging=0.0))[0]
    assert torch.equal(vector(plain.network), vector(averaged._step.network))
    assert not torch.equal(vector(plain.network), vector(averaged.network))


# Repeating


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, flip=True, shift_pixels=2)], ids=["plain", "augmented"])
def test_same_seed_gives_the_same_weights(recipe: TrainingRecipe):
    assert torch.equal(vector(train(recipe)[0].network), vector(trained(recipe)[0].network))


def test_another_seed_gives_other_weights():
    first, second = (vector(trained(replace(RECIPE, seed=seed))[0].network) for seed in (5, 6))
    assert not torch.equal(first, second)


def test_another_seed_changes_the_order_of_the_images():
    recipes = [replace(RECIPE, epochs=1, seed=seed) for seed in (5, 6)]
    initial = NeuralNetwork()
    losses = [next(TrainingRun(recipe, stripes(), CPU, initial=initial).epochs()).loss for recipe in recipes]
    assert losses[0] != losses[1]


def test_every_epoch_has_its_own_order():
    """With constant weights, losses differ only in which images the last batch leaves out."""
    losses = {epoch.loss for epoch in train(replace(RECIPE, learning_rate=1e-20))[1]}
    assert len(losses) == RECIPE.epochs
