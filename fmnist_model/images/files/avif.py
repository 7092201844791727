"""Take the pixels of an AVIF file, and leave its EXIF behind.

Source: ISO/IEC 14496-12, section 8.11.6 (the box `infe`, which names an item's type).
"""

import re
from typing import Final

from fmnist_model.images.files.clean_file import CleanFile

_EXIF_ITEM: Final = re.compile(rb"(infe(?:\x02...(?=....Exif)|\x03...(?=......Exif))(?:....|......))Exif", re.DOTALL)

_META_BYTES: Final = 1 << 20
"""Bytes at the start of a file that are searched for the box."""


def clean_avif(data: bytes) -> CleanFile:
    """Rename the EXIF item, so that no reader parses it. The orientation stands in the boxes `irot` and `imir`."""
    head, hidden = _EXIF_ITEM.subn(rb"\1skip", data[:_META_BYTES])
    return CleanFile(head + data[_META_BYTES:] if hidden else data)
