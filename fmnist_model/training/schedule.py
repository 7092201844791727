"""The learning rate's schedule."""

import math

from fmnist_model.training.recipe import TrainingRecipe


def learning_rate_at(recipe: TrainingRecipe, step: int, steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to 0.

    Args:
        recipe: the peak learning rate and the share of steps that warm up.
        step: number of the step in the run, from 0.
        steps: number of steps in the run.
    """
    warm_up = recipe.warm_up * steps
    if step < warm_up:
        return recipe.learning_rate * (step + 1) / (warm_up + 1)
    return recipe.learning_rate * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2
