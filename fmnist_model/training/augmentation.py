"""Random changes to training images, made on the device for a whole epoch at a time."""

import torch
from torch import Tensor
from torch.nn import functional


def scale(images: Tensor) -> Tensor:
    """Bring uint8 images, 0 to 255, to the network's float32 input, 0 to 1, as torchvision's `ToTensor` does."""
    return images.float().div_(255)


class Augmentation:
    """Training images with all that chance may make of them: mirrored or not, moved over black or not.

    The images lie on the device once, or twice where they may be mirrored, with a margin as wide as the largest shift;
    an augmented image is a window onto one of them, so that an epoch's are gathered in one go.
    """

    def __init__(self, images: Tensor, *, flip: bool, shift_pixels: int) -> None:
        """Prepare the images.

        Args:
            images: uint8 `[n, 28, 28]`.
            flip: mirror left and right with probability one half.
            shift_pixels: move by up to so many pixels in each direction; 0 leaves the place as it is.
        """
        self._count, height, width = images.shape
        self._flip, self._places = flip, 2 * shift_pixels + 1
        both = torch.cat([images, images.flip(2)]) if flip else images
        padded = functional.pad(both, [shift_pixels] * 4)
        self._windows = padded.unfold(1, height, 1).unfold(2, width, 1)

    def draw(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Draw what becomes of each of `chosen`.

        Args:
            chosen: int64 `[m]`: numbers of images.
            generator: on the CPU, so that the draws are the same on every device.

        Returns:
            int64 `[m, 3]` on the CPU: the image (from `n` on: mirrored), the row and the column of its window. Any
            slice of it is what `take` takes.
        """
        mirrored = torch.rand(len(chosen), generator=generator) < 0.5 if self._flip else torch.zeros(len(chosen))
        places = torch.randint(0, self._places, (len(chosen), 2), generator=generator)
        return torch.cat([(chosen + self._count * mirrored.long())[:, None], places], dim=1)

    def take(self, drawn: Tensor) -> Tensor:
        """Gather images as drawn: uint8 `[m, 28, 28]`, in the order of `drawn`."""
        images, rows, columns = drawn.to(self._windows.device).unbind(1)
        return self._windows[images, rows, columns]
