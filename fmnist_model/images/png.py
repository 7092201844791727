"""Many small PNG files at once: what every common writer makes of a grey image of the model's size.

The files' bytes are read where they lie in the Arrow column, and libdeflate inflates them one by one; all else is done
for two thousand images at a time. A file that differs in anything is left alone, for a decoder that knows all of PNG.
Source: https://www.w3.org/TR/png-3/ (section 9 for the filters).
"""

import struct
import zlib
from dataclasses import dataclass

import deflate
import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from numpy.typing import NDArray

from fmnist_model.classes import IMAGE_SIZE

_HEADER_FIELDS = struct.pack(">4sIIBBBBB", b"IHDR", IMAGE_SIZE, IMAGE_SIZE, 8, 0, 0, 0, 0)
_HEADER = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + _HEADER_FIELDS + struct.pack(">I", zlib.crc32(_HEADER_FIELDS))
"""Signature and IHDR: 28x28, 8 bits, grey, not interlaced."""

_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))

_PIXELS_BEGIN = len(_HEADER) + 8
"""Where IDAT's data begins, after that chunk's length and name."""

_PIXELS_END = 4 + len(_END)
"""From the end: where IDAT's data ends, before that chunk's checksum, which Pillow doesn't heed either."""

_MAX_COMPRESSED = 1024
"""Bytes. Incompressible pixels take 823, and no stream as short as this inflates to more than a megabyte."""

_SCANLINES = IMAGE_SIZE * (1 + IMAGE_SIZE)
"""Bytes after inflating: each row after the number of its filter."""

_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4
"""Filters, by their numbers; 0 is none, and there are no others."""

_FEWEST = 24
"""Of fewer files, a block costs more (0.7 ms, mostly the calls of numpy) than Pillow takes for one after the other."""

_BLOCK = 2048
"""Images a block at most: with 512, an image takes 0.3 µs longer, with 8,192 no less."""


def decode_plain_pngs(files: pa.Array, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Decode the plain ones of many PNG files.

    Plain means 28x28, 8-bit grey, not interlaced; the chunks IHDR, IDAT (once) and IEND, and nothing else; and without
    a fault, but that IDAT's checksum is not looked at: the compressed pixels have their own.

    Args:
        files: binary or large_binary, `[n]`, one file a row, of whatever kind.
        pixels: `[n, 28, 28]`, where the images are put, each at its row; what is put at other rows means nothing.

    Returns:
        bool `[n]`, the rows that were decoded; all `False` if they are few.
    """
    decoded = np.zeros(len(files), np.bool_)
    if len(files) < _FEWEST:
        return decoded
    streams = _find_streams(files)
    if len(streams.rows) < _FEWEST:
        return decoded
    blocks = -(-len(streams.rows) // _BLOCK)
    size = -(-len(streams.rows) // blocks)
    block = _Block(size)
    for first in range(0, len(streams.rows), size):
        rows = streams.rows[first : first + size]
        decoded[rows] = block.load(streams.inflate(first, first + size))
        block.reverse_filters()
        block.store(pixels, rows)
    return decoded


@dataclass(frozen=True)
class _Streams:
    """Compressed pixels, where they lie in the column."""

    data: memoryview
    rows: NDArray[np.int64]
    """`[m]`, the files' rows."""
    begins: NDArray[np.int64]
    """`[m]`, offsets in `data`; likewise `ends`."""
    ends: NDArray[np.int64]

    def inflate(self, first: int, end: int) -> NDArray[np.uint8]:
        """Inflate streams: `[end - first, 28, 29]`, a filter's number before each row, 255 in damaged ones."""
        spans = zip(self.begins[first:end].tolist(), self.ends[first:end].tolist(), strict=True)
        scanlines = [_inflate(self.data[begin:end]) for begin, end in spans]
        return np.frombuffer(b"".join(scanlines), np.uint8).reshape(-1, IMAGE_SIZE, 1 + IMAGE_SIZE)


_DAMAGED = b"\xff" * _SCANLINES
"""No filter has the number 255."""


def _inflate(stream: memoryview) -> bytes | bytearray:
    try:
        scanlines = deflate.zlib_decompress(stream, _SCANLINES)
    except deflate.DeflateError:
        return _DAMAGED
    return scanlines if len(scanlines) == _SCANLINES else _DAMAGED


def _find_streams(files: pa.Array) -> _Streams:
    """Find the files that are plain as far as can be seen without inflating them."""
    _, offsets_buffer, data_buffer = files.buffers()
    kind = np.int64 if pa.types.is_large_binary(files.type) else np.int32
    offsets = np.frombuffer(offsets_buffer, kind)[files.offset : files.offset + len(files) + 1].astype(np.int64)
    lengths = np.diff(offsets) - (_PIXELS_BEGIN + _PIXELS_END)
    rows = np.flatnonzero((lengths > 0) & (lengths <= _MAX_COMPRESSED) & np.asarray(files.is_valid()))
    if not len(rows):
        return _Streams(memoryview(b""), rows, rows, rows)
    data = np.frombuffer(data_buffer, np.uint8)
    heads = sliding_window_view(data, _PIXELS_BEGIN)[offsets[rows]]
    tails = sliding_window_view(data, len(_END))[offsets[rows + 1] - len(_END)]
    header, name, end = (np.frombuffer(text, np.uint8) for text in (_HEADER, b"IDAT", _END))
    plain = (heads[:, :-8] == header).all(axis=1) & (heads[:, -4:] == name).all(axis=1) & (tails == end).all(axis=1)
    plain &= heads[:, -8:-4].copy().view(">u4")[:, 0] == lengths[rows]
    rows = rows[plain]
    return _Streams(memoryview(data_buffer), rows, offsets[rows] + _PIXELS_BEGIN, offsets[rows + 1] - _PIXELS_END)


class _Block:
    """Images of which the filters are reversed together.

    PNG predicts a pixel from its neighbours to the left, above and above left. With pixels kept by the diagonal they
    lie on (row + column), these neighbours lie one, one and two diagonals back, so that a diagonal of all images is
    one step: 55 steps a block instead of 784.

    Memory is `[diagonal, row, image]`, so that a step's pixels lie side by side. Two diagonals before the first, a
    row above the first, and the cells beside the picture stay zero, as PNG wants what lies outside to be.
    """

    def __init__(self, size: int) -> None:
        # An odd number of cache lines: strides that are a multiple of a power of two crowd into a few sets of the
        # cache (transposing 1,024 images with a stride of 1,024 bytes takes twice as long).
        lanes = (-(-size // 64) | 1) * 64
        cells = np.zeros((2 + 2 * IMAGE_SIZE - 1, (1 + IMAGE_SIZE) * lanes), np.uint8)
        down, right = cells.strides[0] + lanes, cells.strides[0]
        self._pixels = as_strided(cells[2:, lanes:], (IMAGE_SIZE, IMAGE_SIZE, lanes), (down, right, 1))
        self._filters = np.zeros((IMAGE_SIZE, lanes), np.uint8)
        self._steps = _steps(cells, lanes)

    def load(self, scanlines: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Take images, `[n, 28, 29]`; tell which of them have valid filters."""
        filters = scanlines[:, :, 0]
        self._filters[:, : len(scanlines)] = filters.T
        for first in range(0, len(scanlines), 256):  # as many as the cache holds twice: takes half as long
            part = scanlines[first : first + 256, :, 1:]
            self._pixels[:, :, first : first + len(part)] = part.transpose(1, 2, 0)
        valid: NDArray[np.bool_] = np.all(filters <= _PAETH, axis=1)
        return valid

    def reverse_filters(self) -> None:
        """Turn what was loaded into pixels."""
        filters = self._filters.reshape(-1)
        paeth, average = filters == _PAETH, filters == _AVERAGE
        left, above, corner = _mask((filters == _SUB) | paeth), _mask((filters == _UP) | paeth), _mask(paeth)
        mean = _mask(average)
        any_paeth, any_average = bool(paeth.any()), bool(average.any())
        for step in self._steps:
            a, b, c = step.scratch[:3]
            np.bitwise_and(step.left, left[step.rows], a)
            np.bitwise_and(step.above, above[step.rows], b)
            if any_paeth:
                np.bitwise_and(step.above_left, corner[step.rows], c)
                _add_paeth(step)
            else:
                np.add(step.pixels, a, step.pixels)
                np.add(step.pixels, b, step.pixels)
            if any_average:
                _add_average(step, mean[step.rows])

    def store(self, pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """Put the images at their rows of `[n, 28, 28]`."""
        images = self._pixels[:, :, : len(rows)].transpose(2, 0, 1)
        if rows[-1] - rows[0] == len(rows) - 1:
            pixels[rows[0] : rows[-1] + 1] = images
        else:
            pixels[rows] = images


@dataclass(frozen=True, slots=True)
class _Step:
    """A diagonal of all images: its pixels (filtered before the step, true after it), and their neighbours."""

    rows: slice
    """The pixels' rows, all images of each, in `[row, image]`."""
    pixels: NDArray[np.uint8]
    left: NDArray[np.uint8]
    above: NDArray[np.uint8]
    above_left: NDArray[np.uint8]
    scratch: list[NDArray[np.uint8]]


def _steps(cells: NDArray[np.uint8], lanes: int) -> list[_Step]:
    """Lay out the steps once: to slice arrays at each step of each block would cost as much again as a third."""
    scratch = [np.empty(IMAGE_SIZE * lanes, np.uint8) for _ in range(7)]
    steps = []
    for diagonal in range(2 * IMAGE_SIZE - 1):
        first, end = max(0, diagonal - IMAGE_SIZE + 1) * lanes, (min(diagonal, IMAGE_SIZE - 1) + 1) * lanes
        here, above = slice(lanes + first, lanes + end), slice(first, end)
        steps.append(
            _Step(
                slice(first, end),
                cells[diagonal + 2, here],
                cells[diagonal + 1, here],
                cells[diagonal + 1, above],
                cells[diagonal, above],
                [array[: end - first] for array in scratch],
            )
        )
    return steps


def _mask(chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """0xFF where chosen."""
    return np.negative(chosen.view(np.uint8))


def _add_paeth(step: _Step) -> None:
    """Add to the pixels whichever of a (left), b (above) and c (above left) is nearest to a + b - c.

    With `rise = max(a, b, c) - c` and `fall = c - min(a, b, c)` that is the largest where `2 * fall <= rise`, the
    smallest where `2 * rise <= fall`, and c between. So no number leaves a byte, nothing is branched on, and with b
    and c zero, as for Sub, it is a, with a and c zero, as for Up, b, and with all of them zero nothing.
    """
    pixels = step.pixels
    a, b, c, rise, fall, half, choice = step.scratch
    np.maximum(a, b, out=rise)
    np.maximum(rise, c, out=rise)
    np.subtract(rise, c, rise)
    np.minimum(a, b, out=fall)
    np.minimum(fall, c, out=fall)
    np.subtract(c, fall, fall)
    np.add(pixels, c, pixels)
    # A product with 0 or 1 is ten times as fast as `where`.
    np.right_shift(rise, 1, half)
    np.less_equal(fall, half, choice.view(np.bool_))
    np.multiply(rise, choice, a)
    np.add(pixels, a, pixels)
    np.right_shift(fall, 1, half)
    np.less_equal(rise, half, choice.view(np.bool_))
    np.multiply(fall, choice, b)
    np.subtract(pixels, b, pixels)


def _add_average(step: _Step, chosen: NDArray[np.uint8]) -> None:
    """Add the mean of left and above, rounded down, to the chosen pixels: `(a & b) + ((a ^ b) >> 1)` fits a byte."""
    common, differing = step.scratch[:2]
    np.bitwise_xor(step.left, step.above, differing)
    np.right_shift(differing, 1, differing)
    np.bitwise_and(step.left, step.above, common)
    np.add(common, differing, common)
    np.bitwise_and(common, chosen, common)
    np.add(step.pixels, common, step.pixels)
