"""What decides what is learned."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides what is learned."""

    epochs: int = 8
    """Passes over the training images."""
    global_batch_size: int = 256
    """Images a step, over all ranks together."""
    learning_rate: float = 2e-3
    """At the peak of the one-cycle schedule (Smith and Topin, arXiv:1708.07120)."""
    weight_decay: float = 0.1
    """Decoupled, as AdamW has it (Loshchilov and Hutter, arXiv:1711.05101)."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes (Szegedy et al., arXiv:1512.00567)."""
    flip: bool = False
    """Mirror half of the images."""
    shift_pixels: int = 0
    """Move each image by up to so many pixels."""
    seed: int = 0
    """Of the initial weights, the order of the images and the augmentation."""


PRESETS = {
    "quick": TrainingRecipe(),
    "full": TrainingRecipe(epochs=40, flip=True, shift_pixels=1),
}
"""Recipes by name: `quick` for a result within a minute, `full` for a better one."""
