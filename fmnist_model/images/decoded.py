"""The result of decoding a column of images."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MISSING: Final = "missing: the image is null"
"""Reason for a row without an image."""


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images, and the reasons for those that could not be decoded."""

    pixels: NDArray[np.uint8]
    """`[n, 28, 28]`, 0 black to 255 white, the decodable images in input order."""
    rows: NDArray[np.int64]
    """`[n]`, input row of each decoded image."""
    rejected: list[tuple[int, str]]
    """Input row and reason of each rejected image."""
