"""Read IDX files of images, the format of MNIST and its successors.

A file holds unsigned bytes `[n, height, width]`, plain or gzipped. 28x28 images are returned as raw pixels. Images of
any other size are returned as BMP files, which the decoder resizes.
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
from fmnist_model.errors import InvalidDataset, NoImages
from fmnist_model.formats.content import describe_start
from fmnist_model.formats.forward import ForwardBytes, compression_of, is_gzipped, open_forward
from fmnist_model.formats.interface import BATCH_BYTES, ContainerPiece, ImageBatch, even_cuts, row_fragments
from fmnist_model.formats.labels import parse_labels
from fmnist_model.images.idx import UNSIGNED_BYTE

_MAX_PIXELS = 64_000_000
"""Maximum number of pixels per image, the same as for image files."""

_MAX_GZIP_RATIO = 1100
"""Upper bound of how much gzip can compress. Its format allows a ratio of 1,032."""

_BITMAP_HEADER_BYTES = 14 + 40 + 4 * 256
"""Size of BITMAPFILEHEADER, BITMAPINFOHEADER and a palette of 256 colours."""


def pieces(
    file: Any, origin: str, *, target_rows: int, target_bytes: int, labels: Any | None = None
) -> Iterator[ContainerPiece]:
    """Cut a file into pieces of equal size.

    A gzipped file is a single piece, because it can only be decompressed from the start.

    Args:
        file: random-access `pyarrow.NativeFile` of the images.
        origin: URI of the file, for error messages.
        target_rows: maximum number of images per piece.
        target_bytes: maximum number of bytes per piece. A piece has at least one image.
        labels: random-access `pyarrow.NativeFile` of the labels, if there are any.

    Raises:
        InvalidDataset: the file isn't an IDX file of images, has fewer or more bytes than its header says, or has
            another number of labels than images.
    """
    header = _images_header(file, origin)
    _check_length(file, header, origin)
    if labels is not None:
        _check_length(labels, _labels_header(labels, header.count, origin), _labels_origin(origin))
    if header.count == 0:
        return
    if compression_of(file):
        yield ContainerPiece(0, header.count, 0, file.size())
        return
    rows = max(1, min(target_rows, target_bytes // header.image_bytes))
    for first, end in even_cuts(header.count, -(-header.count // rows)):
        yield ContainerPiece(first, end - first, 0, (end - first) * header.image_bytes)


def read(
    file: Any, origin: str, piece: ContainerPiece, *, batch_rows: int, labels: Any | None = None
) -> Iterator[ImageBatch]:
    """Read the images of a piece and their labels.

    Labels are null if they aren't 0 to 9, or without a label file. See `fmnist_model.formats.read` for the arguments.

    Raises:
        InvalidDataset: a file is damaged, or has changed since it was cut into pieces.
    """
    header = _images_header(file, origin)
    end_row = piece.first_row + piece.rows
    images = open_forward(file, origin, end=header.offset_of(end_row))
    if labels is None:
        label_values = None
    else:
        _labels_header(labels, header.count, origin)
        label_values = open_forward(labels, _labels_origin(origin), end=_labels_offset(end_row))
    rows = max(1, min(batch_rows, BATCH_BYTES // (header.image_bytes + _BITMAP_HEADER_BYTES)))
    for first_row in range(piece.first_row, end_row, rows):
        count = min(rows, end_row - first_row)
        encoded = _exactly(images, header.offset_of(first_row), count * header.image_bytes, origin)
        yield ImageBatch(
            row_fragments(first_row, count),
            _encoded(np.frombuffer(encoded, np.uint8).reshape(count, header.height, header.width)),
            _labels(label_values, first_row, count, origin),
        )
    if end_row == header.count:
        # Read up to the end, where gzip verifies its checksum.
        images.at(header.offset_of(header.count), 1)


def label_file_name(name: str) -> str | None:
    """Return the name of the label file that belongs to a file of images, or None if the name follows no convention.

    For example, `train-labels-idx1-ubyte.gz` belongs to `train-images-idx3-ubyte.gz`. Each of the two may be gzipped or
    plain, so try the name with and without `.gz`.
    """
    folder, slash, file_name = name.rpartition("/")
    found = re.sub("idx3", "idx1", re.sub("images?", _label_word, file_name, flags=re.IGNORECASE), flags=re.IGNORECASE)
    return None if found == file_name else f"{folder}{slash}{found}"


def _label_word(found: re.Match[str]) -> str:
    word = "labels" if found[0].lower() == "images" else "label"
    return word.upper() if found[0].isupper() else word


@dataclass(frozen=True)
class _Header:
    """Header of an IDX file."""

    shape: tuple[int, ...]
    """Dimensions of the array: `(n, height, width)` for images, `(n,)` for labels."""

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
        # Labels have one dimension, and other data that belongs to images may have two.
        error = NoImages if len(header.shape) < 3 else InvalidDataset
        raise error(
            f"{origin} holds an array of shape {list(header.shape)[:8]}. Expected images [n, height, width]. Exclude "
            "the file."
        )
    if not 0 < header.image_bytes <= _MAX_PIXELS:
        raise InvalidDataset(
            f"{origin} has images of {header.height} x {header.width} pixels. Expected 1 to {_MAX_PIXELS:,} pixels. "
            "Exclude the file."
        )
    return header


def _labels_header(file: Any, count: int, origin: str) -> _Header:
    header = _header(file, _labels_origin(origin))
    if header.shape != (count,):
        raise InvalidDataset(
            f"{origin} has {count:,} images, but its label file holds an array of shape {list(header.shape)[:8]} "
            f"instead of [{count}]. Restore both files, or remove the label file."
        )
    return header


def _labels_origin(origin: str) -> str:
    return f"The label file of {origin}"


def _header(file: Any, origin: str) -> _Header:
    # A header has at most 4 + 4 * 255 bytes.
    data = open_forward(file, origin, block_bytes=1024).at(0, 1024)
    if data[:2] != b"\0\0" or len(data) < 4:
        found = describe_start(data) or f"it starts with {data[:4].hex(' ')} instead of 00 00"
        # Many programs call an index `.idx`. NVIDIA DALI puts one next to each tar.
        is_index = data[:1] not in (b"", b"\0") and origin.lower().endswith(".idx")
        error = NoImages if is_index else InvalidDataset
        raise error(f"{origin} is not an IDX file: {found}. Exclude the file.")
    if data[2] != UNSIGNED_BYTE:
        raise InvalidDataset(
            f"{origin} holds values of type 0x{data[2]:02x}. Expected unsigned bytes (0x08). Exclude the file."
        )
    if data[3] == 0 or len(data) < 4 + 4 * data[3]:
        raise InvalidDataset(f"{origin} is truncated: it ends inside its header. Restore it.")
    return _Header(struct.unpack_from(f">{data[3]}I", data, 4))


def _check_length(file: Any, header: _Header, origin: str) -> None:
    expected = header.offset_of(header.count)
    if not compression_of(file):
        found = file.size()
    elif is_gzipped(file) and expected > file.size() * _MAX_GZIP_RATIO:
        found = 0
    elif is_gzipped(file) and _recorded_length(file) == expected % 2**32:
        # The recorded length is right, so don't decompress the file to count its bytes. Reading it detects damage.
        return
    else:
        found = expected - 1 + len(open_forward(file, origin).at(expected - 1, 2))
    if found != expected:
        what = "longer than its header says" if found > expected else "truncated"
        raise InvalidDataset(
            f"{origin} is {what}: expected {expected:,} bytes for shape {list(header.shape)}. Restore it."
        )


def _recorded_length(file: Any) -> int:
    """Return the decompressed length that the last member of a gzip file records, modulo 2**32.

    It is the length of the whole file only if there is one member and the file isn't truncated.
    """
    return int.from_bytes(file.read_at(4, max(0, file.size() - 4)), "little")


def _exactly(data: ForwardBytes, offset: int, size: int, origin: str) -> bytes:
    found = data.at(offset, size)
    if len(found) < size:
        raise InvalidDataset(f"{origin} is truncated: it ends at byte {offset + len(found):,}. Restore it.")
    return found


def _labels(values: ForwardBytes | None, first_row: int, count: int, origin: str) -> pa.Int16Array:
    if values is None:
        return pa.nulls(count, pa.int16())
    data = _exactly(values, _labels_offset(first_row), count, _labels_origin(origin))
    return parse_labels(pa.array(np.frombuffer(data, np.uint8)), origin=_labels_origin(origin))


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
    """Encode grey images, uint8 `[n, height, width]`, as BMP files, uint8 `[n, file bytes]`.

    A file consists of BITMAPFILEHEADER, BITMAPINFOHEADER, a palette of 256 grey tones, and the rows from bottom to top,
    each padded to a multiple of 4 bytes.
    """
    count, height, width = images.shape
    rows = np.zeros((count, height, -(-width // 4) * 4), np.uint8)
    rows[:, :, :width] = images[:, ::-1]
    pixel_bytes = rows.shape[1] * rows.shape[2]
    tones = bytes(value for tone in range(256) for value in (tone, tone, tone, 0))
    header = struct.pack("<2sIII", b"BM", _BITMAP_HEADER_BYTES + pixel_bytes, 0, _BITMAP_HEADER_BYTES)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, pixel_bytes, 0, 0, 256, 0) + tones
    headers = np.broadcast_to(np.frombuffer(header, np.uint8), (count, _BITMAP_HEADER_BYTES))
    return np.concatenate([headers, rows.reshape(count, pixel_bytes)], axis=1)
