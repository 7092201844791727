"""Take the first frame of a GIF file, and leave everything else behind.

Source: https://www.w3.org/Graphics/GIF/spec-gif89a.txt.
"""

from typing import Final

from fmnist_model.images.files.clean_file import CleanFile
from fmnist_model.images.rejected import ImageRejected

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL: Final = 0xF9


def clean_gif(data: bytes) -> CleanFile:
    """Keep the screen, its colours, and the first frame with its transparency.

    Comments, application blocks and further frames are dropped. The trailer may be missing.

    Raises:
        ImageRejected: the file ends before its first frame.
    """
    position = 13 + _table_bytes(data[10] if len(data) > 10 else 0)
    screen = data[:position]
    control = b""
    while position + 1 < len(data) and data[position] != _IMAGE:
        if data[position] == _TRAILER:
            raise ImageRejected("damaged: the file has no pixels")
        if data[position] != _EXTENSION:
            position += 1  # a stray byte between blocks
            continue
        end = _end_of_blocks(data, position + 2)
        if data[position + 1] == _GRAPHIC_CONTROL:
            control = data[position:end]
        position = end
    if position + 10 > len(data):
        raise ImageRejected("truncated: the file ends before its pixels")
    pixels = position + 10 + _table_bytes(data[position + 9]) + 1
    end = _end_of_blocks(data, pixels)
    return CleanFile(screen + control + data[position:end] + bytes([0, _TRAILER]))


def _table_bytes(flags: int) -> int:
    """Return the size of the colour table that follows these flags."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_blocks(data: bytes, position: int) -> int:
    """Return the offset after a chain of blocks, each of which starts with its length, or the end of the file."""
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return min(position + 1, len(data))
