"""A batch that can't be decoded as a whole is decoded image by image."""

import numpy as np
import pyarrow as pa
import pytest

from fmnist_model.images import decode
from fmnist_model.images.decode import decode_images
from fmnist_model.images.decoded import DecodedImages
from tasks.classification.decode import decode_batch
from tests.unit.tasks.classification.image_inputs import picture, png

IMAGES = pa.array([png(0), b"deadly", None, b"not an image", png(4)])


def test_batch_is_decoded_like_its_images() -> None:
    found, expected = decode_batch(IMAGES, invert="always"), decode_images(IMAGES, invert="always")
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.rejected == expected.rejected


@pytest.mark.parametrize("error", [MemoryError(), pa.ArrowInvalid("offset overflow"), RecursionError()], ids=repr)
def test_image_that_makes_its_batch_fail_is_rejected_alone(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decode_images

    def fail(encoded: pa.Array, **options: str) -> DecodedImages:
        if b"deadly" in encoded.to_pylist():
            raise error
        return real(encoded, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("tasks.classification.decode.decode_images", fail)
    found = decode_batch(IMAGES, invert="never")
    assert found.rows.tolist() == [0, 4]
    np.testing.assert_array_equal(found.pixels, np.stack([picture(0), picture(4)]))
    assert [row for row, _ in found.rejected] == [1, 2, 3]
    assert type(error).__name__ in dict(found.rejected)[1]


def test_batch_without_a_good_image_has_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.classification.decode.decode_images", lambda *_, **__: 1 / 0)
    found = decode_batch(pa.array([b"a", b"b"]), invert="never")
    assert found.pixels.shape == (0, 28, 28)
    assert [row for row, _ in found.rejected] == [0, 1]


def test_image_that_takes_more_memory_than_there_is_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = decode.decode_image

    def run_out_of_memory(data: bytes) -> object:
        if data == b"other":
            raise MemoryError
        return real(data)

    monkeypatch.setattr(decode, "decode_image", run_out_of_memory)
    found = decode_batch(pa.array([png(0), b"other"]), invert="never")
    assert found.rows.tolist() == [0]
    assert "MemoryError" in dict(found.rejected)[1]
