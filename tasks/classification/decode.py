"""Decode the images of a batch. Whatever one image does, the others are decoded."""

from typing import Any

import numpy as np
import pyarrow as pa

from fmnist_model.classes import IMAGE_SIZE
from fmnist_model.errors import describe_unexpected
from fmnist_model.images.decode import Invert, decode_images
from fmnist_model.images.decoded import DecodedImages


def decode_batch(encoded: pa.Array, *, invert: Invert) -> DecodedImages:
    """Decode images together. If that fails, decode them one by one.

    Args:
        encoded: `[n]`, images as `decode_images` takes them.
        invert: which images to replace by their negative.
    """
    try:
        return decode_images(encoded, invert=invert)
    except Exception:  # noqa: BLE001 (one image must not stop the others)
        found = [decode_row(encoded, row, invert=invert) for row in range(len(encoded))]
    rows = [row for row, pixels in enumerate(found) if not isinstance(pixels, str)]
    return DecodedImages(
        pixels=np.array([found[row] for row in rows], np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE),
        rows=np.array(rows, np.int64),
        rejected=[(row, reason) for row, reason in enumerate(found) if isinstance(reason, str)],
    )


def decode_row(encoded: pa.Array, row: int, *, invert: Invert = "never") -> np.ndarray[Any, np.dtype[np.uint8]] | str:
    """Decode one image of a batch. Return its pixels, uint8 `[28, 28]`, or the reason why it can't be decoded."""
    try:
        decoded = decode_images(encoded.slice(row, 1), invert=invert)
    except Exception as error:  # noqa: BLE001 (one image must not stop the others)
        return describe_unexpected(error)
    return decoded.rejected[0][1] if decoded.rejected else decoded.pixels[0]
