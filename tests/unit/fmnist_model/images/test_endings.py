"""An image file is recognized by its ending, before it is read."""

import pytest

from fmnist_model.images.endings import IMAGE_SUFFIXES, UNSUPPORTED_IMAGE_SUFFIXES, is_image_name


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "A.JPG",
        "b.jpeg",
        "x/c.WebP",
        "d.gif",
        "e.bmp",
        "f.tif",
        "f.TIFF",
        "a.b.png",
        "a.jfif",
        "a.JPE",
        "a.avif",
    ],
)
def test_image_file_is_recognized_by_name(name: str):
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["a.txt", "png", ".png", "x/.png", "a.png.gz", "a.parquet", "a.png~", "", "a.heic"])
def test_other_file_is_not_recognized_as_image(name: str):
    assert not is_image_name(name)


def test_no_ending_is_both_decodable_and_unsupported():
    assert not IMAGE_SUFFIXES & UNSUPPORTED_IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES | UNSUPPORTED_IMAGE_SUFFIXES))
def test_endings_are_in_lower_case_with_their_dot(suffix: str):
    assert suffix == suffix.lower()
    assert suffix.startswith(".")
