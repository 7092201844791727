"""Find a picture's orientation, and turn the picture upright.

Only the orientation is read. A wrong type or a bad pointer elsewhere in EXIF is ignored.
Source: TIFF 6.0, section 2, and EXIF 2.32, section 4.6.4.
"""

import re
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

UPRIGHT: Final = 1

_TAG = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""Types of TIFF values that are whole numbers and fit into an entry, with their letter in `struct`."""

_EXIF_HEADER = re.compile(rb"(?:Exif\0.)+", re.DOTALL)
_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*(?:["']|<)""")


def exif_orientation(block: bytes) -> int | None:
    """Return the orientation in a block of EXIF, or None if it holds none that can be read.

    Args:
        block: an EXIF block, with or without the header `Exif`.

    Returns:
        1 to 8. A number outside this range, or a value of another type, counts as upright.
    """
    if header := _EXIF_HEADER.match(block):
        block = block[header.end() :]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return None
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    if first + 2 > len(block):
        return None
    (count,) = struct.unpack_from(f"{order}H", block, first)
    entries = block[first + 2 : first + 2 + 12 * count]
    for start in range(0, len(entries) - 11, 12):
        if struct.unpack_from(f"{order}H", entries, start) == (_TAG,):
            return orientation_value(order, entries[start : start + 12])
    return None


def orientation_value(order: str, entry: bytes) -> int:
    """Return the orientation in a TIFF entry of 12 bytes (or 20 in BigTIFF), or upright if it isn't valid.

    Args:
        order: byte order, `<` or `>`.
        entry: the entry, which starts with its tag.
    """
    count = entry[4:-4] if len(entry) == 12 else entry[4:12]
    _, kind = struct.unpack_from(f"{order}HH", entry)
    letter = _INTEGERS.get(kind)
    if letter is None or int.from_bytes(count, "little" if order == "<" else "big") != 1:
        return UPRIGHT
    (value,) = struct.unpack_from(order + letter, entry, 4 + len(count))
    return value if 1 <= value <= 8 else UPRIGHT


def xmp_orientation(text: bytes) -> int | None:
    """Return the orientation in a block of XMP, or None if it holds none."""
    found = _XMP.search(text)
    return int(found[1]) if found else None


def turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn a stored picture, `[height, width]`, upright."""
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: pixels[::-1].T,
        7: pixels[::-1, ::-1].T,
        8: pixels.T[::-1],
    }
    return turned.get(orientation, pixels)
