"""Take the first frame of a WebP file, and leave everything else behind.

Source: https://developers.google.com/speed/webp/docs/riff_container.
"""

import struct
from typing import Final

from fmnist_model.images.files.clean_file import CleanFile
from fmnist_model.images.orientation import UPRIGHT, exif_orientation, xmp_orientation
from fmnist_model.images.rejected import ImageRejected

_PIXELS: Final = frozenset([b"VP8 ", b"VP8L", b"ALPH", b"ANIM"])
_HAS_PROFILE, _HAS_EXIF, _HAS_XMP = 0x20, 0x08, 0x04
"""Flags in VP8X."""

_MAX_METADATA_BYTES: Final = 1 << 20


def clean_webp(data: bytes) -> CleanFile:
    """Keep the chunks that hold the pixels of the first frame, whatever the file says about its own size.

    Raises:
        ImageRejected: the file ends inside its pixels, or has none.
    """
    chunks: list[bytes] = []
    orientation: int | None = None
    from_xmp: int | None = None
    has_pixels = False
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        following = body + length + length % 2
        if name in (b"EXIF", b"XMP "):
            text = data[body : min(body + length, body + _MAX_METADATA_BYTES)]
            if name == b"EXIF" and orientation is None:
                orientation = exif_orientation(text)
            elif name == b"XMP ":
                from_xmp = from_xmp or xmp_orientation(text)
        elif name == b"VP8X" and position == 12 and length >= 10:
            flags = data[body] & ~(_HAS_PROFILE | _HAS_EXIF | _HAS_XMP)
            chunks.append(struct.pack("<4sI", name, 10) + bytes([flags]) + data[body + 1 : body + 10])
        elif (name in _PIXELS or name == b"ANMF") and not has_pixels:
            if body + length > len(data):
                raise ImageRejected(f"truncated: the file ends {body + length - len(data):,} bytes early")
            chunks.append(data[position : body + length] + bytes(length % 2))
            has_pixels = name in (b"VP8 ", b"VP8L", b"ANMF")
        position = following
    if not has_pixels:
        raise ImageRejected("truncated: the file has no pixels")
    content = b"".join(chunks)
    kept = struct.pack("<4sI4s", b"RIFF", 4 + len(content), b"WEBP") + content
    return CleanFile(kept, orientation or from_xmp or UPRIGHT)
