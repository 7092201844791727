"""Decode many plain 28x28 PNG files at once.

Plain files are what the common writers produce for a grey image of the model's size. Any other file is left to a
general decoder. libdeflate inflates each file straight from the Arrow column. All other work is vectorised over blocks
of about 2,000 images.

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
"""PNG signature and IHDR chunk of a 28x28, 8-bit grey, non-interlaced image."""

_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))

_BYTES_BEFORE_PIXELS = len(_HEADER) + 8
"""Bytes before IDAT's data: the header, and IDAT's length and name."""

_BYTES_AFTER_PIXELS = 4 + len(_END)
"""Bytes after IDAT's data: IDAT's checksum, which Pillow ignores too, and the IEND chunk."""

_MAX_COMPRESSED_BYTES = 1024
"""Maximum size of IDAT's data. Incompressible pixels take 823 bytes, and 1,024 bytes inflate to about 1 MB at most."""

_SCANLINE_BYTES = IMAGE_SIZE * (1 + IMAGE_SIZE)
"""Size of an image after inflating. Each row is preceded by the number of its filter."""

_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4
"""Numbers of the filters. 0 means no filter, and larger numbers are invalid."""

_MIN_FILES = 24
"""Below this number Pillow is faster: a block costs 0.7 ms whatever its size, mostly for calls to numpy."""

_BLOCK_IMAGES = 2048
"""Maximum images per block. At 512 an image takes 0.3 µs longer, and at 8,192 the same time."""


def decode_plain_pngs(files: pa.Array, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Decode those of many files that are plain PNGs.

    A plain PNG is 28x28, 8-bit grey and not interlaced, consists of the chunks IHDR, IDAT (once) and IEND, and is
    undamaged. IDAT's checksum is not verified, because the compressed pixels have their own.

    Args:
        files: binary or large_binary `[n]`, one file of any format per row.
        pixels: uint8 `[n, 28, 28]`, output buffer. Decoded images are written to their rows, and the content of all
            other rows is undefined.

    Returns:
        bool `[n]`, whether each row was decoded. All are `False` if there are fewer than 24 candidates.
    """
    decoded = np.zeros(len(files), np.bool_)
    if len(files) < _MIN_FILES:
        return decoded
    streams = _find_streams(files)
    if len(streams.rows) < _MIN_FILES:
        return decoded
    block_count = -(-len(streams.rows) // _BLOCK_IMAGES)
    block_images = -(-len(streams.rows) // block_count)
    block = _Block(block_images)
    for first in range(0, len(streams.rows), block_images):
        rows = streams.rows[first : first + block_images]
        decoded[rows] = block.load(streams.inflate(first, first + block_images))
        block.reverse_filters()
        block.store(pixels, rows)
    return decoded


@dataclass(frozen=True)
class _Streams:
    """Positions of compressed pixels in the column's buffer."""

    data: memoryview
    """The column's data buffer."""
    rows: NDArray[np.int64]
    """`[m]`, row of each file in the column."""
    starts: NDArray[np.int64]
    """`[m]`, offset in `data` of each stream's first byte."""
    ends: NDArray[np.int64]
    """`[m]`, offset in `data` after each stream's last byte."""

    def inflate(self, first: int, end: int) -> NDArray[np.uint8]:
        """Inflate streams `first` to `end` into uint8 `[end - first, 28, 29]`.

        Each row starts with its filter number. Images whose stream is damaged are filled with 255.
        """
        spans = zip(self.starts[first:end].tolist(), self.ends[first:end].tolist(), strict=True)
        scanlines = [_inflate(self.data[start:stop]) for start, stop in spans]
        return np.frombuffer(b"".join(scanlines), np.uint8).reshape(-1, IMAGE_SIZE, 1 + IMAGE_SIZE)


_DAMAGED = b"\xff" * _SCANLINE_BYTES
"""Stands for the scanlines of a damaged stream, since 255 is not a valid filter number."""


def _inflate(stream: memoryview) -> bytes | bytearray:
    try:
        scanlines = deflate.zlib_decompress(stream, _SCANLINE_BYTES)
    except deflate.DeflateError:
        return _DAMAGED
    return scanlines if len(scanlines) == _SCANLINE_BYTES else _DAMAGED


def _find_streams(files: pa.Array) -> _Streams:
    """Find the files that look like plain PNGs before inflating."""
    _, offsets_buffer, data_buffer = files.buffers()
    kind = np.int64 if pa.types.is_large_binary(files.type) else np.int32
    offsets = np.frombuffer(offsets_buffer, kind)[files.offset : files.offset + len(files) + 1].astype(np.int64)
    lengths = np.diff(offsets) - (_BYTES_BEFORE_PIXELS + _BYTES_AFTER_PIXELS)
    rows = np.flatnonzero((lengths > 0) & (lengths <= _MAX_COMPRESSED_BYTES) & np.asarray(files.is_valid()))
    if not len(rows):
        return _Streams(memoryview(b""), rows, rows, rows)
    data = np.frombuffer(data_buffer, np.uint8)
    heads = sliding_window_view(data, _BYTES_BEFORE_PIXELS)[offsets[rows]]
    tails = sliding_window_view(data, len(_END))[offsets[rows + 1] - len(_END)]
    header, name, end = (np.frombuffer(text, np.uint8) for text in (_HEADER, b"IDAT", _END))
    plain = (heads[:, :-8] == header).all(axis=1) & (heads[:, -4:] == name).all(axis=1) & (tails == end).all(axis=1)
    plain &= heads[:, -8:-4].copy().view(">u4")[:, 0] == lengths[rows]
    rows = rows[plain]
    starts, ends = offsets[rows] + _BYTES_BEFORE_PIXELS, offsets[rows + 1] - _BYTES_AFTER_PIXELS
    return _Streams(memoryview(data_buffer), rows, starts, ends)


class _Block:
    """Reverse the filters of many images together.

    PNG predicts a pixel from its neighbours to the left, above and above left. With pixels stored by diagonal
    (row + column), these neighbours lie one, one and two diagonals back. So one step can process a diagonal of all
    images, and a block takes 55 steps instead of 784.

    Memory is laid out as `[diagonal, row, image]` to keep a step's pixels contiguous. Two diagonals before the first
    one, a row above the first one, and the cells outside the image stay zero, the value that PNG assigns to pixels
    outside the image.
    """

    def __init__(self, images: int) -> None:
        # Use an odd number of cache lines. Strides that are a multiple of a large power of two map to few sets of the
        # cache: transposing 1,024 images with a stride of 1,024 bytes takes twice as long.
        lanes = (-(-images // 64) | 1) * 64
        cells = np.zeros((2 + 2 * IMAGE_SIZE - 1, (1 + IMAGE_SIZE) * lanes), np.uint8)
        down, right = cells.strides[0] + lanes, cells.strides[0]
        self._pixels = as_strided(cells[2:, lanes:], (IMAGE_SIZE, IMAGE_SIZE, lanes), (down, right, 1))
        self._filters = np.zeros((IMAGE_SIZE, lanes), np.uint8)
        self._steps = _steps(cells, lanes)

    def load(self, scanlines: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Load scanlines, uint8 `[n, 28, 29]`, and return bool `[n]`, whether each image has valid filters only."""
        filters = scanlines[:, :, 0]
        self._filters[:, : len(scanlines)] = filters.T
        for first in range(0, len(scanlines), 256):  # source and target fit the cache, which halves the time
            part = scanlines[first : first + 256, :, 1:]
            self._pixels[:, :, first : first + len(part)] = part.transpose(1, 2, 0)
        valid: NDArray[np.bool_] = np.all(filters <= _PAETH, axis=1)
        return valid

    def reverse_filters(self) -> None:
        """Replace the loaded, filtered values by pixels."""
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
        """Write the images to their rows of `pixels`, uint8 `[n, 28, 28]`."""
        images = self._pixels[:, :, : len(rows)].transpose(2, 0, 1)
        if rows[-1] - rows[0] == len(rows) - 1:
            pixels[rows[0] : rows[-1] + 1] = images
        else:
            pixels[rows] = images


@dataclass(frozen=True, slots=True)
class _Step:
    """Views of one diagonal of all images and of its neighbours, each flattened from `[row, image]`."""

    rows: slice
    """Position of the diagonal's rows in an array flattened from `[row, image]`."""
    pixels: NDArray[np.uint8]
    """Filtered values before the step, pixels after it."""
    left: NDArray[np.uint8]
    """Left neighbours of the pixels."""
    above: NDArray[np.uint8]
    """Neighbours above the pixels."""
    above_left: NDArray[np.uint8]
    """Neighbours above and to the left of the pixels."""
    scratch: list[NDArray[np.uint8]]
    """Seven buffers of the same length, shared by all steps."""


def _steps(cells: NDArray[np.uint8], lanes: int) -> list[_Step]:
    """Create the views of all steps once. Slicing the arrays in each block would take a third longer."""
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
    """Convert a boolean array to 0xFF where true and 0 elsewhere."""
    return np.negative(chosen.view(np.uint8))


def _add_paeth(step: _Step) -> None:
    """Add to each pixel whichever of a (left), b (above) and c (above left) is nearest to a + b - c.

    Let `rise = max(a, b, c) - c` and `fall = c - min(a, b, c)`. The nearest is the largest of the three if
    `2 * fall <= rise`, the smallest if `2 * rise <= fall`, and c otherwise. All values fit a byte, and there are no
    branches.

    The same code serves the other filters. With b and c zero it adds a, as Sub does. With a and c zero it adds b, as Up
    does. With all three zero it adds nothing.
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
    # Multiplying by 0 or 1 is ten times as fast as `where`.
    np.right_shift(rise, 1, half)
    np.less_equal(fall, half, choice.view(np.bool_))
    np.multiply(rise, choice, a)
    np.add(pixels, a, pixels)
    np.right_shift(fall, 1, half)
    np.less_equal(rise, half, choice.view(np.bool_))
    np.multiply(fall, choice, b)
    np.subtract(pixels, b, pixels)


def _add_average(step: _Step, chosen: NDArray[np.uint8]) -> None:
    """Add the mean of left and above, rounded down, to the chosen pixels.

    The mean is computed as `(a & b) + ((a ^ b) >> 1)`, which fits a byte.
    """
    common, differing = step.scratch[:2]
    np.bitwise_xor(step.left, step.above, differing)
    np.right_shift(differing, 1, differing)
    np.bitwise_and(step.left, step.above, common)
    np.add(common, differing, common)
    np.bitwise_and(common, chosen, common)
    np.add(step.pixels, common, step.pixels)
