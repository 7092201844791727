"""The batches of an epoch: shuffled, augmented and divided among the ranks."""

import torch
from torch import Tensor

from fmnist_model.classes import IMAGE_SIZE
from fmnist_model.dataset import LabelledImages
from fmnist_model.training.augmentation import Augmentation
from fmnist_model.training.ranks import Ranks
from fmnist_model.training.recipe import TrainingRecipe


class EpochBatches:
    """This rank's part of every batch, in a new order for each epoch.

    Order and augmentation depend on the recipe's seed and the epoch's number alone. They depend on neither the number
    of ranks nor the random state of an earlier epoch.
    """

    def __init__(self, data: LabelledImages, recipe: TrainingRecipe, ranks: Ranks, device: torch.device) -> None:
        """Move the images to the device.

        Args:
            data: training images, the same on every rank.
            recipe: the global batch size, the augmentation and the seed.
            ranks: the ranks that share each batch.
            device: where to train.
        """
        self.batch_size = min(recipe.global_batch_size, len(data))
        """Images per step, over all ranks together."""
        self.steps_per_epoch = len(data) // self.batch_size
        self.own = ranks.own_slice(self.batch_size)
        """This rank's slice of each batch."""
        self._seed = recipe.seed
        self._device = device
        images = torch.from_numpy(data.images).to(device)
        self._augmentation = Augmentation(images, flip=recipe.flip, shift_pixels=recipe.shift_pixels)
        self._labels = torch.from_numpy(data.labels)
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def of_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return an epoch's images, uint8 `[steps, m, 28, 28]`, and labels, int64 `[steps, m]`, on the device."""
        draws, labels = self.draw(epoch)
        images = self._augmentation.apply(draws).reshape(*labels.shape, IMAGE_SIZE, IMAGE_SIZE)
        return images, labels.to(self._device)

    def draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw an epoch's order and augmentation on the CPU, and keep them for `of_epoch`.

        Returns:
            Draws of `Augmentation`, int64 `[steps * m, 3]`, and labels, int64 `[steps, m]`.
        """
        if self._drawn is None or self._drawn[0] != epoch:
            # Every rank draws for all images, so that the draws don't depend on the number of ranks.
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            order = torch.randperm(len(self._labels), generator=generator)[: self.steps_per_epoch * self.batch_size]
            draws = self._augmentation.draw(order, generator)
            draws = draws.reshape(self.steps_per_epoch, self.batch_size, 3)[:, self.own].reshape(-1, 3)
            labels = self._labels[order].reshape(self.steps_per_epoch, self.batch_size)[:, self.own]
            self._drawn = epoch, draws, labels
        return self._drawn[1:]
