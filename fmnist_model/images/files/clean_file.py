"""A file as Pillow gets it: what is needed for the pixels, and nothing else."""

from dataclasses import dataclass
from typing import Final

from fmnist_model.images.orientation import UPRIGHT

MAX_PIXELS: Final = 64_000_000
"""Maximum number of pixels to decode. 64 megapixels take 256 MB in RGB, because Pillow uses four bytes per pixel."""


@dataclass(frozen=True)
class CleanFile:
    """An image file without metadata, and what the metadata says about its pixels."""

    data: bytes
    orientation: int = UPRIGHT
    """1 to 8, as in EXIF."""
    bits: int = 8
    """Bits per sample."""
    signed: bool = False
    """Whether the samples are signed integers."""
    inverted: bool = False
    """Whether 0 is white and Pillow doesn't take this into account."""
    has_end: bool = True
    """Whether a JPEG has the marker that ends it."""
    is_cut: bool = False
    """Whether a TIFF says that it has pixels after its end."""
