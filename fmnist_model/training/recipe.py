"""The training recipe: every number that decides what the network learns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


class RecipeMismatch(ValueError):
    """A recorded recipe doesn't have the fields of `TrainingRecipe`."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"Recipe with missing or unknown fields: {', '.join(names)}.")
        self.names = names
        """Names of the fields that are missing or unknown, sorted."""


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides what the network learns. The defaults are the preset `full`.

    Fields with `metadata` can be set for each run. The Prefect form and the command line draw their description and
    bounds from it.
    """

    epochs: int = field(
        default=60, metadata={"description": "Passes over the training images.", "minimum": 1, "maximum": 10_000}
    )
    global_batch_size: int = field(
        default=3072,
        metadata={"description": "Images per step, summed over all workers.", "minimum": 1, "maximum": 60_000},
    )
    learning_rate: float = field(
        default=0.05,
        metadata={"description": "Learning rate at the peak of the schedule.", "minimum": 1e-6, "maximum": 10},
    )
    """Learning rate of the hidden layers' matrices (Muon)."""
    warm_up: float = 0.3
    """Share of the steps in which the learning rate rises. It then falls to 0 as half a cosine (arXiv:1608.03983)."""
    output_learning_rate_share: float = 0.1
    """Learning rate of the output layer and the biases (AdamW), as a share of `learning_rate`."""
    weight_decay: float = 0.15
    """Decoupled weight decay of the hidden layers' matrices (Loshchilov and Hutter, arXiv:1711.05101)."""
    output_weight_decay: float = 0.01
    """Decoupled weight decay of the output layer and the biases."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes (Szegedy et al., arXiv:1512.00567)."""
    flip: bool = True
    """Mirror half of the images."""
    shift_pixels: int = 1
    """Largest random shift of an image, in pixels."""
    weight_averaging: float = 0.0
    """Share that the average of the weights keeps in each step. 0 turns averaging off.

    After `s` steps the share is (1 + s) / (10 + s) if that is less (Polyak and Juditsky, 1992). The averaged weights
    are the ones that are validated, kept and used.
    """
    validation_images: int = field(
        default=5_000,
        metadata={
            "description": "Training images to hold out for validation and calibration, the same ones in every run.",
            "minimum": 0,
            "maximum": 59_990,
        },
    )
    initial_weights: str = ""
    """SHA-256 of the weights to start from. Empty: random weights, drawn from the seed."""
    seed: int = field(
        default=0,
        metadata={
            "description": "Seed of the initial weights, the order of the images and the augmentation.",
            "minimum": 0,
            "maximum": 2**31 - 1,
        },
    )

    def to_record(self) -> dict[str, Any]:
        """Return the recipe as JSON values by field name, as checkpoints and model versions record it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read a recipe that `to_record` wrote.

        Raises:
            RecipeMismatch: a field is missing or unknown, as in the records of another release.
        """
        if names := sorted(record.keys() ^ {declared.name for declared in fields(cls)}):
            raise RecipeMismatch(names)
        return cls(**record)


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
"""Recipes by name. `quick` gives a result within a minute, `full` a better one."""
