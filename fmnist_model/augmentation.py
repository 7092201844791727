"""Random changes to training images, made on the device for a whole batch at a time."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional


def scale(images: Tensor) -> Tensor:
    """Bring uint8 images, 0 to 255, to the network's float32 input, 0 to 1, as torchvision's `ToTensor` does."""
    return images.float().div_(255)


@dataclass(frozen=True)
class AugmentationDraws:
    """What chance decided for each image of a batch, apart from the images so that it can be sliced as they are."""

    mirrored: Tensor
    """bool `[n]`."""
    offsets: Tensor
    """int64 `[n, 2]`: rows and columns, 0 to twice the largest shift."""
    shift_pixels: int

    @classmethod
    def draw(cls, n: int, generator: torch.Generator, *, flip: bool, shift_pixels: int) -> Self:
        """Draw for `n` images.

        Args:
            n: number of images.
            generator: on the CPU, so that the draws are the same on every device.
            flip: mirror left and right with probability one half.
            shift_pixels: move by up to so many pixels in each direction; 0 leaves the place as it is.
        """
        mirrored = torch.rand(n, generator=generator) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
        offsets = torch.randint(0, 2 * shift_pixels + 1, (n, 2), generator=generator)
        return cls(mirrored, offsets, shift_pixels)

    def apply(self, images: Tensor, chosen: slice) -> Tensor:
        """Change images as drawn, filling with black what a shift uncovers.

        Args:
            images: float `[m, 28, 28]`, the batch's images `chosen`.
            chosen: which of the batch's images these are.

        Returns:
            float `[m, 28, 28]`.
        """
        m, height, width = images.shape
        device = images.device
        mirrored = self.mirrored[chosen]
        if mirrored.any():
            images = torch.where(mirrored.to(device)[:, None, None], images.flip(2), images)
        if self.shift_pixels:
            offsets = self.offsets[chosen].to(device)
            padded = functional.pad(images, [self.shift_pixels] * 4)
            rows = offsets[:, :1] + torch.arange(height, device=device)
            columns = offsets[:, 1:] + torch.arange(width, device=device)
            images = padded[torch.arange(m, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
        return images
