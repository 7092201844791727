"""What decides what is learned."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides what is learned; the defaults are the preset `full`."""

    epochs: int = 60
    """Passes over the training images."""
    global_batch_size: int = 3072
    """Images a step, over all ranks together."""
    learning_rate: float = 0.05
    """Of the hidden layers' matrices, by Muon, at the peak of the schedule."""
    warm_up: float = 0.3
    """Share of the steps in which the learning rate rises; then it falls to 0 as half a cosine (arXiv:1608.03983)."""
    output_learning_rate_share: float = 0.1
    """Of the output layer and the biases, by AdamW, as a share of `learning_rate`."""
    weight_decay: float = 0.15
    """Of the hidden layers' matrices, decoupled (Loshchilov and Hutter, arXiv:1711.05101)."""
    output_weight_decay: float = 0.01
    """Likewise, of the output layer and the biases."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes (Szegedy et al., arXiv:1512.00567)."""
    flip: bool = True
    """Mirror half of the images."""
    shift_pixels: int = 1
    """Move each image by up to so many pixels."""
    weight_averaging: float = 0.0
    """Share that an average of the weights keeps in each step; after `s` steps (1 + s) / (10 + s) where that is less
    (Polyak and Juditsky, 1992). It is then what is validated, kept and used. 0: no average, the weights themselves."""
    validation_images: int = 5_000
    """Held out of the training images, the same ones in every run."""
    initial_weights: str = ""
    """SHA-256 of the weights to begin with; empty: random ones by the seed."""
    seed: int = 0
    """Of the initial weights, the order of the images and the augmentation."""


PRESETS = {
    "quick": TrainingRecipe(
        epochs=6,
        global_batch_size=1024,
        learning_rate=0.04,
        warm_up=0.2,
        flip=False,
        shift_pixels=0,
        weight_averaging=0.98,
    ),
    "full": TrainingRecipe(),
}
"""Recipes by name: `quick` for a result within a minute, `full` for a better one."""
