"""Augmentation flips and shifts images as drawn."""

import torch
from torch import Tensor

from fmnist_model.training.augmentation import Augmentation


def augmented(images: Tensor, *, flip: bool = False, shift_pixels: int = 0) -> tuple[Tensor, Tensor]:
    """Augment each image once, and return the results and the draws."""
    augmentation = Augmentation(images, flip=flip, shift_pixels=shift_pixels)
    draws = augmentation.draw(torch.arange(len(images)), torch.Generator().manual_seed(3))
    return augmentation.apply(draws), draws


def noise(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8)


def test_slices_are_augmented_like_the_whole_epoch():
    augmentation = Augmentation(noise(7), flip=True, shift_pixels=2)
    draws = augmentation.draw(torch.randperm(7), torch.Generator())
    parts = torch.cat([augmentation.apply(part) for part in (draws[:3], draws[3:])])
    assert torch.equal(parts, augmentation.apply(draws))


def test_images_come_in_the_requested_order():
    images = noise(5)
    augmentation = Augmentation(images, flip=False, shift_pixels=0)
    order = torch.tensor([3, 0, 3, 4])
    assert torch.equal(augmentation.apply(augmentation.draw(order, torch.Generator())), images[order])


def test_images_are_unchanged_without_flips_and_shifts():
    images = noise(5)
    assert torch.equal(augmented(images)[0], images)


def test_flipped_images_are_mirrored_left_to_right():
    images = noise(50)
    found, draws = augmented(images, flip=True)
    expected = [image.flip(1) if number >= 50 else image for image, number in zip(images, draws[:, 0], strict=True)]
    assert torch.equal(found, torch.stack(expected))


def test_about_half_of_the_images_are_flipped():
    assert 400 < (augmented(noise(1000), flip=True)[1][:, 0] >= 1000).sum() < 600


def test_shifted_image_is_the_image_moved_over_black():
    images = noise(50)
    found, draws = augmented(images, shift_pixels=2)
    expected = torch.zeros(50, 32, 32, dtype=torch.uint8)
    for number, (_, row, column) in enumerate(draws.tolist()):
        expected[number, 4 - row : 32 - row, 4 - column : 32 - column] = images[number]
    assert torch.equal(found, expected[:, 2:30, 2:30])


def test_shifts_reach_every_offset_in_the_range():
    assert sorted(set(augmented(noise(1000), shift_pixels=2)[1][:, 1:].flatten().tolist())) == [0, 1, 2, 3, 4]
