"""Check the size of a JPEG 2000 file.

Source: ISO/IEC 15444-1, annex A.5.1 (the marker SIZ).
"""

import struct
from typing import Final

from fmnist_model.images.files.clean_file import CleanFile
from fmnist_model.images.rejected import ImageRejected

MAX_PIXELS: Final = 32_000_000
"""Maximum number of pixels. OpenJPEG takes up to 23 bytes for each."""

_START: Final = b"\xff\x4f\xff\x51"
_END: Final = b"\xff\xd9"
_MAX_COMPONENTS: Final = 4


def clean_jpeg2000(data: bytes) -> CleanFile:
    """Return the file as it is, if its pixels are as many as its header may say.

    The size stands in the codestream, and a second time in the container. OpenJPEG reserves memory by the former.

    Raises:
        ImageRejected: the file ends early, or its size takes too much memory.
    """
    start = data.find(_START)
    if start < 0 or start + 42 > len(data):
        raise ImageRejected("truncated: the file ends before its pixels")
    right, bottom, left, top, *_, components = struct.unpack_from(">8IH", data, start + 8)
    width, height = max(0, right - left), max(0, bottom - top)
    if width * height > MAX_PIXELS or components > _MAX_COMPONENTS:
        raise ImageRejected(f"too large: {width} x {height} pixels of {components} components")
    if data.rfind(_END) < start:
        raise ImageRejected("truncated: the file ends before its pixels do")
    return CleanFile(data)
