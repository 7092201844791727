"""Bring pictures with more than 8 bits per pixel to 8 bits.

| pixels | rule |
| --- | --- |
| 12 or 16 bits without sign | The high byte. |
| 16 bits, all below 4,096 | Rejected, unless all are 0. They most likely use 8 to 12 bits, and would look black. |
| whole numbers without a stated range, 0 to 255 | As they are. |
| whole numbers without a stated range, up to 65,535, one of 32,768 or more | The high byte. |
| floats from 0 to 1 | Times 255, rounded. |
| floats that are whole numbers above 1 | As whole numbers. |
| all others: negative, between 256 and 32,767, not a number | Rejected, because the file doesn't say what is white. |
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fmnist_model.images.files import LoadedPicture
from fmnist_model.images.rejected import ImageRejected

if TYPE_CHECKING:
    from PIL.Image import Image

STRIP_PIXELS: Final = 1 << 21
"""Pixels to convert at once. Copies of a whole picture could take gigabytes."""

_DARKEST_WHITE: Final = 4096
"""Of 16 bits. If all values are below, the file was most likely written with fewer bits than it says."""

_ROUNDING: Final = 0.5 / 255
"""Floats this far outside 0 to 1 still round to 0 or 255."""


def strips_of(picture: "Image") -> "Iterator[tuple[int, Image]]":
    """Cut a picture into strips of full width. Yield the top row of each, and its picture."""
    rows = max(1, STRIP_PIXELS // picture.width)
    if rows >= picture.height:
        yield 0, picture
        return
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def to_eight_bits(loaded: LoadedPicture) -> "Image":
    """Return a picture whose modes have 8 bits per pixel or fewer. It is the same picture if nothing is to be done.

    Raises:
        ImageRejected: the file doesn't say what is white.
    """
    picture, bits = loaded.picture, loaded.file.bits
    if picture.mode.startswith("I;16"):
        return _shifted(loaded, bits=12 if bits == 12 else 16)
    if picture.mode == "I" and loaded.format == "PPM":  # Pillow brings them to 16 bits
        return _shifted(loaded, bits=16)
    if picture.mode in ("I", "F") or (loaded.file.signed and picture.mode == "L"):
        return _scaled(loaded)
    if bits == 16 and picture.mode in ("RGB", "RGBA", "LA", "La"):
        colours = picture.getbands()[: 3 if picture.mode.startswith("RGB") else 1]
        brightest = max(int(np.max(picture.getchannel(colour).getextrema())) for colour in colours)
        if brightest < _DARKEST_WHITE >> 8:
            raise ImageRejected(_too_dark("4,095"))
    return picture


def _shifted(loaded: LoadedPicture, bits: int) -> "Image":
    """Keep the high byte of unsigned values with 12 or 16 bits."""
    brightest = max(int(values.max()) for values in _arrays(loaded))
    if bits == 16 and 0 < brightest < _DARKEST_WHITE:
        raise ImageRejected(_too_dark(f"{brightest:,}"))
    transparent = loaded.picture.info.get("transparency")

    def convert(values: NDArray[Any]) -> NDArray[np.uint8]:
        grey = (values >> (bits - 8)).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = 0
        return grey

    return _converted(loaded, convert)


def _scaled(loaded: LoadedPicture) -> "Image":
    """Scale values whose range the file doesn't state, if they tell it."""
    extremes = [_Extremes.of(values) for values in _arrays(loaded)]
    low, high = min(part.low for part in extremes), max(part.high for part in extremes)
    whole = all(part.whole for part in extremes)
    if not all(part.finite for part in extremes):
        raise ImageRejected("unsupported: pixels that are infinite or not a number")
    if loaded.picture.mode == "F" and low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return _converted(loaded, lambda values: np.rint(values.clip(0, 1) * np.float32(255)).astype(np.uint8))
    if whole and low >= 0 and high <= 255:
        return _converted(loaded, lambda values: values.astype(np.uint8))
    if whole and low >= 0 and 1 << 15 <= high < 1 << 16:
        return _converted(loaded, lambda values: (values.astype(np.int32) >> 8).astype(np.uint8))
    raise ImageRejected(
        f"unsupported: pixels from {low:.6g} to {high:.6g}, and the file doesn't say what is white. "
        "Save it with 8 bits."
    )


class _Extremes:
    """The least and greatest value of some pixels."""

    def __init__(self, low: float, high: float, *, finite: bool, whole: bool) -> None:
        self.low, self.high, self.finite, self.whole = low, high, finite, whole

    @classmethod
    def of(cls, values: NDArray[Any]) -> "_Extremes":
        low, high = float(values.min()), float(values.max())
        finite = bool(np.isfinite(low) and np.isfinite(high))  # a NaN makes both NaN
        return cls(low, high, finite=finite, whole=finite and bool((values == np.rint(values)).all()))


def _arrays(loaded: LoadedPicture) -> Iterator[NDArray[Any]]:
    for _, strip in strips_of(loaded.picture):
        values = np.asarray(strip)
        yield values.view(np.int8) if loaded.file.signed and values.dtype == np.uint8 else values


def _converted(loaded: LoadedPicture, convert: Any) -> "Image":
    from PIL import Image

    grey = Image.new("L", loaded.picture.size)
    rows = max(1, STRIP_PIXELS // loaded.picture.width)
    for number, values in enumerate(_arrays(loaded)):
        levels = convert(values)
        grey.paste(Image.fromarray(~levels if loaded.file.inverted else levels), (0, number * rows))
    return grey


def _too_dark(brightest: str) -> str:
    return (
        f"unsupported: 16-bit pixels of at most {brightest}, so the file doesn't say how many bits it uses. "
        "Save it with 8 bits."
    )
