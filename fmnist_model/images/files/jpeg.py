"""Take the pixels of a JPEG file, and leave everything else behind.

Source: https://www.w3.org/Graphics/JPEG/itu-t81.pdf (annex B for the markers).
"""

import re
import struct
from dataclasses import dataclass, field
from typing import Final

from fmnist_model.images.files.clean_file import MAX_PIXELS, CleanFile
from fmnist_model.images.orientation import UPRIGHT, exif_orientation, xmp_orientation
from fmnist_model.images.rejected import ImageRejected

_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_START, _END_OF_IMAGE, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKER: Final = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_MARKER_IN_SCAN: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""Marker inside compressed pixels, where 0xFF is followed by a zero, or by the number of a restart."""

_JFIF: Final = struct.pack(">BBH5sHBHHBB", 0xFF, _APP0, 16, b"JFIF\0", 0x0101, 0, 1, 1, 0, 0)
"""A JFIF segment without density and thumbnail. Its presence says that the colours are YCbCr."""

_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"

_MAX_PIXELS_OF_ONE_SCAN: Final = 4 * MAX_PIXELS
"""Maximum number of pixels if libjpeg can scale while it decodes, and needn't keep coefficients of the whole picture.
This takes in phones with 200 megapixels."""


def clean_jpeg(data: bytes) -> CleanFile:
    """Keep the segments that hold pixels: the frame, tables, scans, and what says how colours are stored.

    EXIF, colour profiles, thumbnails, comments, and all bytes before the start or after the end are dropped. The end
    may be missing, which the result says.

    Raises:
        ImageRejected: the file ends before its pixels, or has too many of them.
    """
    header = _read_header(data)
    if header.scan is None:
        raise ImageRejected("truncated: the file ends before its pixels")
    scans = _Scans()
    end = scans.walk(data, header.scan)
    _check_size(header, scans.count)
    pixels = data[header.scan : len(data) if end is None else end]
    if end is None and not scans.complete(header.components):
        raise ImageRejected("truncated: the file ends before its last scan")
    kept = b"".join([b"\xff\xd8", header.colours(), *header.tables, pixels])
    return CleanFile(kept, header.orientation or header.xmp_orientation or UPRIGHT, has_end=end is not None)


@dataclass
class _Header:
    """What stands before the first scan."""

    tables: list[bytes] = field(default_factory=list)
    jfif: bool = False
    adobe: bytes = b""
    orientation: int | None = None
    xmp_orientation: int | None = None
    width: int = 0
    height: int = 0
    components: frozenset[int] = frozenset()
    """Identifiers of the components, such as Y, Cb and Cr."""
    scan: int | None = None
    """Offset of the first scan, or None if there is none."""

    def colours(self) -> bytes:
        return (_JFIF if self.jfif else b"") + self.adobe

    def add(self, marker: int, segment: bytes) -> None:
        """Add a segment, which starts with its marker and its length."""
        body = segment[4:]
        if marker == _APP0:
            self.jfif |= body.startswith(b"JFIF\0") and len(body) >= 14
        elif marker == _APP1:
            self._read_orientation(body)
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            self.adobe = struct.pack(">BBH", 0xFF, _APP14, 14) + body[:12]
        elif not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            self.tables.append(segment)
        if marker in _FRAMES and len(body) >= 6:
            self.height, self.width, count = struct.unpack_from(">xHHB", body)
            self.components = frozenset(body[6 : 6 + 3 * count : 3])

    def _read_orientation(self, body: bytes) -> None:
        if body.startswith(_XMP):
            self.xmp_orientation = self.xmp_orientation or xmp_orientation(body)
        elif self.orientation is None:
            self.orientation = exif_orientation(body)


def _read_header(data: bytes) -> _Header:
    header = _Header()
    position = data.index(b"\xff\xd8\xff") + 2
    while found := _MARKER.search(data, position):
        marker, start = data[found.start() + 1], found.start()
        if marker == _SCAN:
            header.scan = start
            return header
        if marker == _END_OF_IMAGE:
            break
        position = found.end()
        if marker == 0x01 or 0xD0 <= marker <= _START:  # these stand alone
            continue
        if position + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2:
            raise ImageRejected(f"damaged: a segment of {length} bytes in the header")
        position += length
        if position > len(data):
            break
        header.add(marker, data[start:position])
    return header


class _Scans:
    """The scans of a file: how many there are, and what they leave out."""

    def __init__(self) -> None:
        self.count = 0
        self._exact: dict[int, set[int]] = {}
        """Coefficients of each component that were sent in full."""

    def walk(self, data: bytes, position: int) -> int | None:
        """Read all scans from the offset of the first one. Return the offset after the end, or None without one."""
        while found := _MARKER_IN_SCAN.search(data, position):
            marker, position = data[found.start() + 1], found.end()
            if marker == _END_OF_IMAGE:
                return position
            if marker in (0x01, _START):
                continue
            if position + 2 > len(data):
                return None
            (length,) = struct.unpack_from(">H", data, position)
            if marker == _SCAN:
                self._add(data[position + 2 : position + length])
            position += length
        return None

    def _add(self, body: bytes) -> None:
        self.count += 1
        if not body or len(body) < 4 + 2 * body[0]:
            return
        components, (first, last, precision) = body[1 : 1 + 2 * body[0] : 2], body[1 + 2 * body[0] : 4 + 2 * body[0]]
        if precision & 15 == 0:
            for component in components:
                self._exact.setdefault(component, set()).update(range(first, min(last, 63) + 1))

    def complete(self, components: frozenset[int]) -> bool:
        """Return whether a scan begins for every coefficient at full precision."""
        return all(len(self._exact.get(component, ())) == 64 for component in components)


def _check_size(header: _Header, scans: int) -> None:
    largest = _MAX_PIXELS_OF_ONE_SCAN if scans == 1 else MAX_PIXELS
    if header.width * header.height > largest:
        raise ImageRejected(f"too large: {header.width} x {header.height} pixels")
