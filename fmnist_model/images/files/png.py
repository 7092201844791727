"""Take the pixels of a PNG file, and leave everything else behind.

Source: https://www.w3.org/TR/png-3/ (section 5 for the chunks).
"""

import struct
import zlib
from typing import Final

from fmnist_model.images.files.clean_file import CleanFile
from fmnist_model.images.orientation import UPRIGHT, exif_orientation, xmp_orientation
from fmnist_model.images.rejected import ImageRejected

_SIGNATURE_BYTES: Final = 8
_END: Final = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_TRANSPARENCY_BYTES: Final = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}
"""Valid lengths of tRNS by colour type: grey, RGB and palette."""

_MAX_METADATA_BYTES: Final = 1 << 20
"""Bytes of metadata in which to look for an orientation. It stands at the start."""

_XMP: Final = b"XML:com.adobe.xmp\0"
_RAW_EXIF: Final = (b"Raw profile type exif\0", b"Raw profile type APP1\0")


def clean_png(data: bytes) -> CleanFile:
    """Keep the chunks that hold pixels: IHDR, PLTE, tRNS and IDAT.

    Texts, colour profiles, animation and chunks after the pixels are dropped, whatever their size and checksum, and so
    is a tRNS chunk with a wrong checksum. The end may be missing. Pixels between other chunks are joined.

    Raises:
        ImageRejected: the file ends before its pixels.
    """
    if data[12:16] == b"CgBI":
        raise ImageRejected("unsupported: a PNG optimised for iPhones. Convert it to PNG.")
    colour = data[25] if len(data) > 25 else 0
    kept = bytearray(data[:_SIGNATURE_BYTES])
    orientation: int | None = None
    from_xmp: int | None = None
    has_pixels = False
    position = run = _SIGNATURE_BYTES  # `run` is where the chunks start that are kept and not copied yet
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        body, end = position + 8, position + 12 + length
        if name == b"IEND" or not name.isalpha():
            break
        if name == b"IDAT" and end <= len(data):
            has_pixels = True
        elif name == b"IDAT":
            kept += data[run:position]
            rest = data[body : body + length]
            kept += struct.pack(">I4s", len(rest), name) + rest + bytes(4)
            run = position = len(data)
            has_pixels = True
            break
        elif not _is_kept(data, name, colour, body, length):
            kept += data[run:position]
            run = end
            if orientation is None and name == b"eXIf":
                orientation = exif_orientation(data[body : min(body + length, body + _MAX_METADATA_BYTES)])
            elif name in (b"iTXt", b"zTXt", b"tEXt"):
                text = data[body : min(body + length, body + _MAX_METADATA_BYTES)]
                from_xmp = from_xmp or _text_orientation(name, text)
        position = end
    kept += data[run : min(position, len(data))]
    if not has_pixels:
        cut = position + 12 > len(data)
        raise ImageRejected(f"{'truncated' if cut else 'damaged'}: the file has no pixels")
    kept += _END
    bits = data[24]
    return CleanFile(bytes(kept), orientation or from_xmp or UPRIGHT, bits=bits)


def _is_kept(data: bytes, name: bytes, colour: int, body: int, length: int) -> bool:
    if name in (b"IHDR", b"PLTE"):
        return True
    if name != b"tRNS" or length not in _TRANSPARENCY_BYTES.get(colour, ()):
        return False
    checksum = data[body + length : body + length + 4]
    return checksum == struct.pack(">I", zlib.crc32(data[body - 4 : body + length]))


def _text_orientation(name: bytes, text: bytes) -> int | None:
    """Return the orientation that a text chunk holds as XMP, or as EXIF in the way of ImageMagick."""
    if name == b"iTXt" and text.startswith(_XMP):
        compressed = text[len(_XMP) : len(_XMP) + 1] == b"\1"
        rest = text[len(_XMP) + 2 :].split(b"\0", 2)[-1]
        return xmp_orientation(_inflate(rest) if compressed else rest)
    if name != b"iTXt" and text.startswith(_RAW_EXIF):
        rest = text.split(b"\0", 1)[1]
        lines = (_inflate(rest[1:]) if name == b"zTXt" else rest).split(b"\n", 3)  # empty, kind, length, hexadecimal
        try:
            return exif_orientation(bytes.fromhex(lines[-1].decode("ascii")))
        except ValueError:
            return None
    return None


def _inflate(data: bytes) -> bytes:
    """Inflate at most a megabyte, and return nothing if the data is damaged."""
    try:
        return zlib.decompressobj().decompress(data, _MAX_METADATA_BYTES)
    except zlib.error:
        return b""
