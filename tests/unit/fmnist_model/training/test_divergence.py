"""A run that learns nothing any more stops with an error that names epoch and step."""

from dataclasses import replace

import pytest

from fmnist_model.dataset import LabelledImages
from fmnist_model.training.divergence import TrainingDiverged
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes
from tests.unit.fmnist_model.training.toy_training import CPU, RECIPE

ONE_STEP_PER_EPOCH = replace(RECIPE, global_batch_size=600)


def divergence(recipe: TrainingRecipe, validation: LabelledImages | None = None) -> str:
    """The error message of a run that diverges."""
    run = TrainingRun(recipe, stripes(), CPU, validation=validation)
    with pytest.raises(TrainingDiverged) as error:
        list(run.epochs())
    return str(error.value)


def test_huge_learning_rate_diverges():
    message = divergence(replace(RECIPE, learning_rate=1e16))
    assert "nan" in message or "inf" in message
    assert "epoch 1, step " in message
    assert "(1e+16)" in message


def test_diverged_epoch_does_not_count_as_done():
    run = TrainingRun(replace(RECIPE, learning_rate=1e16), stripes(), CPU)
    with pytest.raises(TrainingDiverged):
        list(run.epochs())
    assert run.epochs_done == 0


def test_loss_far_above_that_of_guessing_diverges():
    message = divergence(replace(RECIPE, learning_rate=3.0, epochs=20))
    assert "epoch" in message
    assert "guessing" in message
    assert "nan" not in message


@pytest.mark.parametrize("validation", [None, stripes(20)], ids=["without validation", "with validation"])
def test_weights_ruined_by_the_last_step_of_an_epoch_diverge(validation: LabelledImages | None):
    recipe = replace(ONE_STEP_PER_EPOCH, learning_rate=1e38, output_learning_rate_share=100)
    message = divergence(recipe, validation)
    assert "weights" in message
    assert "epoch 1, step 1." in message


def test_validation_loss_that_is_not_finite_diverges():
    """The weights are finite, but so large that the logits are not."""
    message = divergence(replace(ONE_STEP_PER_EPOCH, learning_rate=1e38), stripes(20))
    assert "validation loss" in message
    assert "nan" in message or "inf" in message
    assert "epoch 1, step 1." in message
