"""Random changes to training images, made on the device for a whole epoch at once."""

import torch
from torch import Tensor
from torch.nn import functional


def scale(images: Tensor) -> Tensor:
    """Convert uint8 images, 0 to 255, to the network's float32 input, 0 to 1, like torchvision's `ToTensor`."""
    return images.float().div_(255)


class Augmentation:
    """Flip and shift training images at random.

    The images stay on the device with a black margin as wide as the largest shift, once as they are and, if flips are
    on, once mirrored. An augmented image is a window onto one of these, so a single indexing operation gathers all the
    images of an epoch.
    """

    def __init__(self, images: Tensor, *, flip: bool, shift_pixels: int) -> None:
        """Prepare the images.

        Args:
            images: training images, uint8 `[n, 28, 28]`.
            flip: whether to mirror each image left to right with probability 1/2.
            shift_pixels: largest shift in each direction, in pixels. 0 shifts nothing.
        """
        self._count, height, width = images.shape
        self._flip, self._offsets = flip, 2 * shift_pixels + 1
        both = torch.cat([images, images.flip(2)]) if flip else images
        padded = functional.pad(both, [shift_pixels] * 4)
        self._windows = padded.unfold(1, height, 1).unfold(2, width, 1)

    def draw(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a random flip and shift for each chosen image.

        Args:
            chosen: indices of the images, int64 `[m]`.
            generator: random generator on the CPU, so that the draws are the same on every device.

        Returns:
            int64 `[m, 3]` on the CPU: index of the image (`n` and above: mirrored), row and column of its window. You
            can pass any slice of it to `apply`.
        """
        mirrored = torch.rand(len(chosen), generator=generator) < 0.5 if self._flip else torch.zeros(len(chosen))
        offsets = torch.randint(0, self._offsets, (len(chosen), 2), generator=generator)
        return torch.cat([(chosen + self._count * mirrored.long())[:, None], offsets], dim=1)

    def apply(self, draws: Tensor) -> Tensor:
        """Gather the augmented images, uint8 `[m, 28, 28]`, in the order of `draws`."""
        images, rows, columns = draws.to(self._windows.device).unbind(1)
        return self._windows[images, rows, columns]
