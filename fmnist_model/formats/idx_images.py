"""IDX files of images, as MNIST and its descendants have them: `[n, height, width]` unsigned bytes, plain or gzipped.

Images of 28x28 are handed on as raw pixels; others as BMP files, which the decoder brings to that size.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fmnist_model.classes import IMAGE_SIZE
from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.forward import ForwardBytes, is_gzipped, open_forward
from fmnist_model.formats.interface import BATCH_BYTES, ContainerPiece, ImageBatch, even_cuts, row_fragments
from fmnist_model.formats.labels import label_array
from fmnist_model.images.idx import UNSIGNED_BYTE

_MAX_PIXELS = 64_000_000
"""As for image files: larger pictures are refused."""

_BITMAP_HEADER_BYTES = 14 + 40 + 4 * 256


def pieces(
    file: Any, origin: str, *, target_rows: int, target_bytes: int, labels: Any | None = None
) -> Iterator[ContainerPiece]:
    """Cut a plain file evenly; a gzipped one is a single piece, since it can only be decompressed from its beginning.

    Args:
        file: a random-access `pyarrow.NativeFile`.
        origin: its URI, for messages.
        target_rows: images in a piece, at most.
        target_bytes: bytes in a piece, at most, unless one image has more.
        labels: the IDX file of its labels, if there is one.

    Raises:
        InvalidDataset: it holds no images, has fewer or more bytes than its header says, or not as many labels.
    """
    header = _images_header(file, origin)
    _check_length(file, header, origin)
    if labels is not None:
        _check_length(labels, _labels_header(labels, header.count, origin), _labels_origin(origin))
    if header.count == 0:
        return
    if is_gzipped(file):
        yield ContainerPiece(0, header.count, 0, file.size())
        return
    rows = max(1, min(target_rows, target_bytes // header.image_bytes))
    for begin, end in even_cuts(header.count, -(-header.count // rows)):
        yield ContainerPiece(begin, end - begin, 0, (end - begin) * header.image_bytes)


def read(
    file: Any, origin: str, piece: ContainerPiece, *, batch_rows: int, labels: Any | None = None
) -> Iterator[ImageBatch]:
    """Read a piece's images, with their labels where a file of those is given; one that is not 0 to 9 is null.

    Raises:
        InvalidDataset: a file is damaged, or not the one that was cut into pieces.
    """
    header = _images_header(file, origin)
    begin = header.offset_of(piece.first_row)
    images = open_forward(file, origin, end=begin + piece.rows * header.image_bytes)
    if labels is None:
        label_values = None
    else:
        _labels_header(labels, header.count, origin)
        end = _labels_offset(piece.first_row + piece.rows)
        label_values = open_forward(labels, _labels_origin(origin), end=end)
    rows = max(1, min(batch_rows, BATCH_BYTES // (header.image_bytes + _BITMAP_HEADER_BYTES)))
    for first_row in range(piece.first_row, piece.first_row + piece.rows, rows):
        count = min(rows, piece.first_row + piece.rows - first_row)
        encoded = _exactly(images, header.offset_of(first_row), count * header.image_bytes, origin)
        yield ImageBatch(
            row_fragments(first_row, count),
            _encoded(np.frombuffer(encoded, np.uint8).reshape(count, header.height, header.width)),
            _labels(label_values, first_row, count, origin),
        )
    if piece.first_row + piece.rows == header.count:
        # A gzip file's checksum stands at its end.
        images.at(header.offset_of(header.count), 1)


def label_file_name(name: str) -> str | None:
    """The name of the file with the labels of a file of images; None where the name doesn't tell.

    `train-images-idx3-ubyte.gz` has `train-labels-idx1-ubyte.gz`. Either may be gzipped: without such a file, look for
    one with `.gz` more or less.
    """
    folder, slash, file_name = name.rpartition("/")
    found = re.sub("idx3", "idx1", re.sub("images?", _label_word, file_name, flags=re.IGNORECASE), flags=re.IGNORECASE)
    return None if found == file_name else f"{folder}{slash}{found}"


def _label_word(found: re.Match[str]) -> str:
    word = "labels" if found[0].lower() == "images" else "label"
    return word.upper() if found[0].isupper() else word


@dataclass(frozen=True)
class _Header:
    """What an IDX file says of itself."""

    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.shape[0]

    @property
    def height(self) -> int:
        return self.shape[1]

    @property
    def width(self) -> int:
        return self.shape[2]

    @property
    def image_bytes(self) -> int:
        return math.prod(self.shape[1:])

    def offset_of(self, row: int) -> int:
        return 4 + 4 * len(self.shape) + row * self.image_bytes


def _images_header(file: Any, origin: str) -> _Header:
    header = _header(file, origin)
    if len(header.shape) != 3:
        raise InvalidDataset(
            f"{origin} holds an array of shape {list(header.shape)[:8]}; images have three dimensions, "
            "[n, height, width]. Leave the file out."
        )
    if not 0 < header.image_bytes <= _MAX_PIXELS:
        raise InvalidDataset(
            f"{origin} says that its images are of {header.height} x {header.width} pixels: they must have 1 to "
            f"{_MAX_PIXELS:,}. Leave the file out."
        )
    return header


def _labels_header(file: Any, count: int, origin: str) -> _Header:
    header = _header(file, _labels_origin(origin))
    if header.shape != (count,):
        raise InvalidDataset(
            f"{origin} has {count:,} images, and the file of its labels an array of shape {list(header.shape)[:8]} "
            f"instead of [{count}]. Restore the two, or remove that of the labels."
        )
    return header


def _labels_origin(origin: str) -> str:
    return f"the file of labels of {origin}"


def _header(file: Any, origin: str) -> _Header:
    # A header has at most 4 + 4 * 255 bytes.
    begin = open_forward(file, origin, block_bytes=1024).at(0, 1024)
    if begin[:2] != b"\0\0" or len(begin) < 4:
        raise InvalidDataset(f"{origin} is no IDX file: it begins with {begin[:4].hex(' ') or 'nothing'}, not 00 00.")
    if begin[2] != UNSIGNED_BYTE:
        raise InvalidDataset(f"{origin} holds values of type 0x{begin[2]:02x}; only unsigned bytes (0x08) are read.")
    if begin[3] == 0 or len(begin) < 4 + 4 * begin[3]:
        raise InvalidDataset(f"{origin} is truncated: it ends inside its header. Restore it.")
    return _Header(struct.unpack_from(f">{begin[3]}I", begin, 4))


def _check_length(file: Any, header: _Header, origin: str) -> None:
    expected = header.offset_of(header.count)
    if not is_gzipped(file):
        found = file.size()
    elif _recorded_length(file) == expected % 2**32:
        # Decompressing it all to count is left to the one who reads it.
        return
    else:
        found = expected - 1 + len(open_forward(file, origin).at(expected - 1, 2))
    if found != expected:
        what = "longer than its header says" if found > expected else "truncated"
        raise InvalidDataset(
            f"{origin} is {what}: its header says {expected:,} bytes (shape {list(header.shape)}). Restore it."
        )


def _recorded_length(file: Any) -> int:
    """Of the last member of a gzip file, and so of all where it has one member, modulo 2**32; wrong if truncated."""
    return int.from_bytes(file.read_at(4, max(0, file.size() - 4)), "little")


def _exactly(data: ForwardBytes, offset: int, size: int, origin: str) -> bytes:
    found = data.at(offset, size)
    if len(found) < size:
        raise InvalidDataset(f"{origin} is truncated: it ends at byte {offset + len(found):,}. Restore it.")
    return found


def _labels(values: ForwardBytes | None, first_row: int, count: int, origin: str) -> pa.Int8Array:
    if values is None:
        return pa.nulls(count, pa.int8())
    data = _exactly(values, _labels_offset(first_row), count, _labels_origin(origin))
    return label_array(pa.array(np.frombuffer(data, np.uint8)))


def _labels_offset(row: int) -> int:
    return _Header((0,)).offset_of(row)


def _encoded(images: np.ndarray[Any, np.dtype[np.uint8]]) -> pa.Array:
    if images.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE):
        kind = pa.binary(IMAGE_SIZE**2)
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(images), [None, pa.py_buffer(images)])
    files = _bitmap_files(images)
    offsets = np.arange(len(files) + 1, dtype=np.int32) * np.int32(files.shape[1])
    return pa.Array.from_buffers(pa.binary(), len(files), [None, pa.py_buffer(offsets), pa.py_buffer(files)])


def _bitmap_files(images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Grey images `[n, height, width]` as BMP files, one a row.

    Source: BITMAPFILEHEADER, BITMAPINFOHEADER and 256 grey tones, then rows from the bottom, padded to 4 bytes.
    """
    count, height, width = images.shape
    rows = np.zeros((count, height, -(-width // 4) * 4), np.uint8)
    rows[:, :, :width] = images[:, ::-1]
    pixel_bytes = rows.shape[1] * rows.shape[2]
    tones = bytes(value for tone in range(256) for value in (tone, tone, tone, 0))
    begin = _BITMAP_HEADER_BYTES
    header = struct.pack("<2sIII", b"BM", begin + pixel_bytes, 0, begin)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, pixel_bytes, 0, 0, 256, 0) + tones
    headers = np.broadcast_to(np.frombuffer(header, np.uint8), (count, begin))
    return np.concatenate([headers, rows.reshape(count, pixel_bytes)], axis=1)
