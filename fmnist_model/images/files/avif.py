"""Take the pixels of an AVIF file, and leave its EXIF behind.

Source: ISO/IEC 14496-12, sections 4.2 (boxes) and 8.11.6 (the box `infe`, which names an item's type).
"""

import re
from typing import Final

from fmnist_model.images.files.clean_file import CleanFile
from fmnist_model.images.rejected import ImageRejected

_EXIF_ITEM: Final = re.compile(rb"(infe(?:\x02...(?=....Exif)|\x03...(?=......Exif))(?:....|......))Exif", re.DOTALL)

_BOXES: Final = frozenset([b"ftyp", b"meta", b"mdat", b"moov"])

_META_BYTES: Final = 1 << 20
"""Bytes at the start of a file that are searched for the box."""


def clean_avif(data: bytes) -> CleanFile:
    """Rename the EXIF item, so that no reader parses it. The orientation stands in the boxes `irot` and `imir`.

    Raises:
        ImageRejected: the file ends inside a box.
    """
    _check_boxes(data)
    head, hidden = _EXIF_ITEM.subn(rb"\1skip", data[:_META_BYTES])
    return CleanFile(head + data[_META_BYTES:] if hidden else data)


def _check_boxes(data: bytes) -> None:
    position = 0
    while data[position + 4 : position + 8] in _BOXES:
        length = int.from_bytes(data[position : position + 4], "big")
        if length == 1:  # the length follows as 64 bits
            length = int.from_bytes(data[position + 8 : position + 16], "big")
        if position + length > len(data):
            raise ImageRejected("truncated: the file ends before its pixels do")
        if length < 8:  # 0: up to the end
            return
        position += length
