"""A training run that takes seconds."""

from functools import cache

import torch

from fmnist_model.dataset import LabelledImages
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.progress import EpochMetrics
from fmnist_model.training.recipe import TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes

CPU = torch.device("cpu")
RECIPE = TrainingRecipe(
    epochs=3,
    global_batch_size=64,
    learning_rate=0.04,
    warm_up=0.2,
    weight_decay=0.05,
    flip=False,
    shift_pixels=0,
    weight_averaging=0.5,
    validation_images=0,
    seed=5,
)


def train(recipe: TrainingRecipe, data: LabelledImages | None = None) -> tuple[TrainingRun, list[EpochMetrics]]:
    run = TrainingRun(recipe, data or stripes(), CPU)
    return run, list(run.epochs())


@cache
def trained(recipe: TrainingRecipe) -> tuple[TrainingRun, list[EpochMetrics]]:
    """Train once for all tests that only read the result. On a slow CPU, a step of Muon takes 70 ms."""
    return train(recipe)
