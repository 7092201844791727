"""Take the pixels of a TIFF file, and leave everything else behind.

Source: TIFF 6.0 (section 2 for the directory), and https://www.awaresystems.be/imaging/tiff/bigtiff.html.
"""

import ctypes
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fmnist_model.images.files.clean_file import MAX_PIXELS, CleanFile
from fmnist_model.images.orientation import UPRIGHT, orientation_value, xmp_orientation
from fmnist_model.images.rejected import ImageRejected

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _XMP = 256, 257, 258, 262, 274, 700
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 278, 322, 323, 339
_KEPT: Final = frozenset(
    [
        254, _WIDTH, _HEIGHT, _BITS, 259, _PHOTOMETRIC, 266, 273, 277, _ROWS_PER_STRIP, 279, 284, 292, 293, 317, 320,
        _TILE_WIDTH, _TILE_HEIGHT, 324, 325, 332, 334, 338, _SAMPLE_FORMAT, 347, *range(512, 522), 529, 530, 531, 532,
        50674,
    ]
)  # fmt: skip
"""Tags that say how the pixels are stored."""

_STRIPS_AND_TILES: Final = ((273, 279), (324, 325))
"""Tags with the offsets and lengths of strips, and of tiles."""

_UNSIGNED: Final = {1: 1, 3: 2, 4: 4, 16: 8}
"""Types that are unsigned integers, with their size in bytes."""

_VALUE_BYTES: Final = _UNSIGNED | {2: 1, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 17: 8, 18: 8}
"""Types, with their size in bytes."""

_SIGNED_INTEGERS: Final = 2
_WHITE_IS_ZERO: Final = 0
_MAX_VALUES: Final = 500_000
"""Maximum number of values of a tag, such as the offsets of strips. Each takes up to 300 bytes in Pillow."""

_MAX_METADATA_BYTES: Final = 1 << 20


def clean_tiff(data: bytes) -> CleanFile:
    """Put a new directory at the end of the file, which has only the tags that say how pixels are stored.

    Raises:
        ImageRejected: the file ends before its directory, or its tiles or strips take too much memory.
    """
    directory = _read_directory(data)
    tags = directory.tags
    for tag in _KEPT & tags.keys():
        if directory.count(tag) > _MAX_VALUES:
            raise ImageRejected(f"too large: {directory.count(tag):,} values of tag {tag}")
    tile_pixels = directory.value(_TILE_WIDTH, 1) * directory.value(_TILE_HEIGHT, 1)
    if tile_pixels > MAX_PIXELS:
        raise ImageRejected(f"too large: a tile of {tile_pixels:,} pixels")
    bits = directory.value(_BITS, 1)
    kept = {tag: tags[tag] for tag in sorted(_KEPT & tags.keys())}
    height = directory.value(_HEIGHT, 0)
    if directory.value(_ROWS_PER_STRIP, 0) > height:  # any large number says that there is one strip
        kept[_ROWS_PER_STRIP] = directory.entry(_ROWS_PER_STRIP, height)
    return CleanFile(
        directory.replace(data, list(kept.values())),
        _orientation(directory),
        bits=bits,
        signed=directory.value(_SAMPLE_FORMAT, 1) == _SIGNED_INTEGERS,
        is_cut=any(directory.ends_early(*tags) for tags in _STRIPS_AND_TILES),
        inverted=bits > 8 and directory.value(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO,  # Pillow inverts up to 8 bits
    )


@cache
def silence_libtiff() -> None:
    """Keep libtiff from printing errors to standard error. Pillow raises an exception for each anyway."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):  # another build of Pillow may hide the function
        handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        handler(None)


@dataclass(frozen=True)
class _Layout:
    """Letters in `struct` for the parts of a directory, which are wider in BigTIFF."""

    count: str
    offset: str
    header: int
    """Offset of the first directory's offset."""
    entry: int
    """Bytes per entry."""


_CLASSIC: Final = _Layout("H", "I", 4, 12)
_BIG: Final = _Layout("Q", "Q", 8, 20)


@dataclass(frozen=True)
class _Directory:
    data: bytes
    order: str
    layout: _Layout
    tags: dict[int, bytes]
    """Entry of each tag. The first one counts."""

    def count(self, tag: int) -> int:
        """Return how many values a tag has."""
        (count,) = struct.unpack_from(self.order + self.layout.offset, self.tags[tag], 4)
        return int(count)

    def bytes_of(self, tag: int, longest: int) -> bytes:
        """Return the first bytes of a tag's value, as far as the file has them."""
        entry = self.tags.get(tag)
        if entry is None:
            return b""
        (kind,) = struct.unpack_from(f"{self.order}2xH", entry)
        width = struct.calcsize(self.layout.offset)
        size = self.count(tag) * _VALUE_BYTES.get(kind, 1)
        if size <= width:
            return entry[4 + width : 4 + width + min(size, longest)]
        (position,) = struct.unpack_from(self.order + self.layout.offset, entry, 4 + width)
        return self.data[position : position + min(size, longest)]

    def values(self, tag: int, most: int) -> NDArray[np.uint64]:
        """Return the first values of a tag, or none if they aren't whole numbers."""
        entry = self.tags.get(tag, bytes(4))
        (kind,) = struct.unpack_from(f"{self.order}2xH", entry)
        width = _UNSIGNED.get(kind)
        if width is None:
            return np.empty(0, np.uint64)
        found = self.bytes_of(tag, most * width)
        return np.frombuffer(found[: len(found) // width * width], f"{self.order}u{width}").astype(np.uint64)

    def value(self, tag: int, default: int) -> int:
        """Return the first value of a tag, or the default if it is missing or not a whole number."""
        found = self.values(tag, 1)
        return int(found[0]) if len(found) else default

    def entry(self, tag: int, value: int) -> bytes:
        """Return an entry for a tag with one value of four bytes."""
        padding = bytes(struct.calcsize(self.layout.offset) - 4)
        return struct.pack(f"{self.order}HH{self.layout.offset}I", tag, 4, 1, value) + padding

    def ends_early(self, offsets: int, lengths: int) -> bool:
        """Return whether the file ends before the strips or tiles that these tags list."""
        starts, sizes = self.values(offsets, _MAX_VALUES), self.values(lengths, _MAX_VALUES)
        n = min(len(starts), len(sizes))
        return bool(np.any(starts[:n] + sizes[:n] > len(self.data)))

    def replace(self, data: bytes, entries: list[bytes]) -> bytes:
        """Return the file with another first directory, and no further ones."""
        offset = len(data) + len(data) % 2
        header, width = self.layout.header, struct.calcsize(self.layout.offset)
        parts: list[bytes | memoryview] = [
            memoryview(data)[:header],
            struct.pack(self.order + self.layout.offset, offset),
            memoryview(data)[header + width :],
            bytes(len(data) % 2),
            struct.pack(self.order + self.layout.count, len(entries)),
            *entries,
            bytes(width),
        ]
        return b"".join(parts)


def _read_directory(data: bytes) -> _Directory:
    order = "<" if data.startswith(b"II") else ">"
    layout = _BIG if b"+" in data[:4] else _CLASSIC
    first = _unpack(order + layout.offset, data, layout.header)
    entries = min(_unpack(order + layout.count, data, first), 1 << 16)  # there are no more tags
    start = first + struct.calcsize(layout.count)
    tags: dict[int, bytes] = {}
    for entry in _entries(data, start, entries, layout.entry):
        (tag,) = struct.unpack_from(f"{order}H", entry)
        tags.setdefault(tag, entry)
    return _Directory(data, order, layout, tags)


def _entries(data: bytes, start: int, count: int, size: int) -> Iterator[bytes]:
    for position in range(start, min(start + count * size, len(data) - size + 1), size):
        yield data[position : position + size]


def _unpack(letters: str, data: bytes, position: int) -> int:
    if position + struct.calcsize(letters) > len(data):
        raise ImageRejected("truncated: the file ends before its directory")
    (value,) = struct.unpack_from(letters, data, position)
    return int(value)


def _orientation(directory: _Directory) -> int:
    entry = directory.tags.get(_ORIENTATION)
    if entry is not None:
        return orientation_value(directory.order, entry)
    return xmp_orientation(directory.bytes_of(_XMP, _MAX_METADATA_BYTES)) or UPRIGHT
