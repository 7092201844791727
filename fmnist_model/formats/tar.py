"""Read WebDataset tars and other tars with image files, plain or gzipped.

A member is an image if its name has the suffix of an image file. Consecutive members whose names are equal up to the
first dot of the last path component form a *sample*, and share its label. The label comes from the sample's `.cls`
member, or else from `label` or `cls` in its `.json` member. As in WebDataset, members whose last path component starts
with a dot are skipped (macOS adds one for every file). Links, folders and sparse files are skipped too.

An image's fragment is `#member=` and the member's name (`interface.member_fragment`). If two images in a tar have the
same name, all fragments in it also have the image's number: `#member=cats/1.png;row=17`.

Source of the sample rule: https://github.com/webdataset/webdataset (`base_plus_ext`, `group_by_keys`).
"""

import json
from array import array
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.forward import BLOCK_BYTES, ForwardBytes, is_gzipped, open_forward
from fmnist_model.formats.interface import BATCH_BYTES, ContainerPiece, ImageBatch, member_fragment
from fmnist_model.formats.labels import parse_label
from fmnist_model.formats.tar_headers import tar_members
from fmnist_model.images.endings import is_image_name

MAX_IMAGE_BYTES = 512 * 2**20
"""Maximum number of bytes to read of a member, the size of 64 megapixels in 16-bit RGBA.

The decoder rejects a larger member, because it is cut off here.
"""

_MAX_LABEL_BYTES = 2**20
"""Maximum size of a `.cls` or `.json` member. A larger one gives no label."""

_SAMPLE_MEMBERS, _SAMPLE_BYTES = 256, BATCH_BYTES
"""Maximum number of members and bytes in a sample, after which the next member starts a new one.

A sample is held in memory until its label is known, and by its names `frame.0001.png`, `frame.0002.png`, … would be a
single sample.
"""

_NAMES_REPEAT = 1
"""Flag added to a piece's offset, which is a multiple of 512, if two images of the tar have the same name."""


def pieces(
    file: Any, origin: str, *, target_rows: int, target_bytes: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[ContainerPiece]:
    """Cut a tar into pieces between samples.

    A gzipped tar is a single piece, and is decompressed to count its images. A truncated tar has all images that start
    before its end.

    Args:
        file: random-access `pyarrow.NativeFile` of the tar.
        origin: URI of the tar, for error messages.
        target_rows: number of images at which a piece ends, after the current sample.
        target_bytes: number of bytes at which a piece ends, after the current sample.
        block_bytes: number of bytes per read. The end of a member larger than a block is skipped, so a small block
            reads less of a local file with large images.

    Raises:
        InvalidDataset: the file isn't a tar, or is damaged.
    """
    if is_gzipped(file):
        found, names_repeat = _scan(file, origin, 2**62, 2**62, block_bytes)
        found = [replace(piece, offset=0, size=file.size()) for piece in found]
    else:
        found, names_repeat = _scan(file, origin, target_rows, target_bytes, block_bytes)
    for piece in found:
        yield replace(piece, offset=piece.offset + _NAMES_REPEAT) if names_repeat else piece


def read(file: Any, origin: str, piece: ContainerPiece, *, batch_rows: int) -> Iterator[ImageBatch]:
    """Read the images of a piece and their labels.

    The last image of a truncated tar is returned incomplete. See `fmnist_model.formats.read` for the arguments.

    Raises:
        InvalidDataset: the file is damaged, or has changed since it was cut into pieces.
    """
    start = piece.offset - piece.offset % 2
    data = open_forward(file, origin, start=start, end=start + piece.size + _LOOKAHEAD_BYTES)
    batch = _Batch(piece.first_row, names_repeat=start != piece.offset)
    for name, encoded, label in _labelled_images(data, start, piece.rows, origin):
        batch.append(name, encoded, label)
        if len(batch) >= batch_rows or batch.bytes >= BATCH_BYTES:
            yield batch.take()
    if len(batch):
        yield batch.take()
    if batch.next_row != piece.first_row + piece.rows:
        raise InvalidDataset(
            f"{origin} has {batch.next_row - piece.first_row} images from byte {start:,}, but {piece.rows} were "
            "planned. The file was replaced after planning. Run the job again."
        )


_LOOKAHEAD_BYTES = 4096
"""Bytes to read after a piece, for the header of the next member, which ends the last sample."""


def _scan(
    file: Any, origin: str, target_rows: int, target_bytes: int, block_bytes: int
) -> tuple[list[ContainerPiece], bool]:
    """Return the pieces, and whether two images have the same name."""
    found: list[ContainerPiece] = []
    names = array("Q")
    samples = _Samples()
    first_row = rows = start = end = sample_start = 0
    for member in tar_members(open_forward(file, origin, block_bytes=block_bytes), 0, origin):
        key, extension = _split_name(member.name)
        if not key:
            continue
        if samples.starts(key, member.size):
            sample_start = member.start
            if rows and (rows >= target_rows or end - start >= target_bytes):
                found.append(ContainerPiece(first_row, rows, start, end - start))
                first_row, rows = first_row + rows, 0
        if _is_image(extension):
            start = start if rows else sample_start
            rows += 1
            names.append(int.from_bytes(blake2b(member.name, digest_size=8).digest()))
        end = member.data + member.size
    if rows:
        found.append(ContainerPiece(first_row, rows, start, min(end, max(file.size(), start)) - start))
    return found, len(np.unique(np.asarray(names))) < len(names)


def _labelled_images(
    data: ForwardBytes, start: int, rows: int, origin: str
) -> Iterator[tuple[bytes, bytes, int | None]]:
    """Yield the name, bytes and label of `rows` images, sample by sample."""
    samples = _Samples()
    images: list[tuple[bytes, bytes]] = []
    labels: dict[bytes, int | None] = {}
    for member in tar_members(data, start, origin):
        key, extension = _split_name(member.name)
        if not key:
            continue
        if samples.starts(key, member.size):
            yield from _with_label(images, labels)
            rows -= len(images)
            images, labels = [], {}
            if rows <= 0:
                return
        if _is_image(extension):
            images.append((member.name, data.at(member.data, min(member.size, MAX_IMAGE_BYTES))))
        elif extension in _LABEL_READERS and member.size <= _MAX_LABEL_BYTES:
            labels[extension] = _LABEL_READERS[extension](data.at(member.data, member.size))
    yield from _with_label(images, labels)


def _with_label(
    images: list[tuple[bytes, bytes]], labels: dict[bytes, int | None]
) -> Iterator[tuple[bytes, bytes, int | None]]:
    label = labels.get(b"cls")
    if label is None:
        label = labels.get(b"json")
    for name, encoded in images:
        yield name, encoded, label


class _Samples:
    """Detect where samples start.

    The result is the same whether detection starts with the tar or with any of its samples.
    """

    def __init__(self) -> None:
        self._key = b""
        self._members = self._bytes = 0

    def starts(self, key: bytes, size: int) -> bool:
        """Add the next member, and return whether it starts a sample.

        Args:
            key: the member's sample key.
            size: the member's size in bytes.
        """
        starts = key != self._key or self._members >= _SAMPLE_MEMBERS or self._bytes >= _SAMPLE_BYTES
        if starts:
            self._key = key
            self._members = self._bytes = 0
        self._members += 1
        self._bytes += size
        return starts


def _split_name(name: bytes) -> tuple[bytes, bytes]:
    """Split a member's name into its sample's key, empty if it belongs to no sample, and its extension."""
    component = name.rfind(b"/") + 1
    dot = name.find(b".", component)
    return (name[:dot], name[dot + 1 :].lower()) if dot > component else (b"", b"")


def _is_image(extension: bytes) -> bool:
    return _is_image_suffix(extension[extension.rfind(b".") + 1 :])


@lru_cache(maxsize=1024)
def _is_image_suffix(suffix: bytes) -> bool:
    return is_image_name("image." + suffix.decode("utf-8", "replace"))


def _class_in_text(data: bytes) -> int | None:
    return parse_label(data.decode("utf-8", "replace"))


def _class_in_json(data: bytes) -> int | None:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    label = parse_label(fields.get("label"))
    return parse_label(fields.get("cls")) if label is None else label


_LABEL_READERS = {b"cls": _class_in_text, b"json": _class_in_json}


class _Batch:
    """Collect images for an `ImageBatch`."""

    def __init__(self, first_row: int, *, names_repeat: bool) -> None:
        self._names_repeat = names_repeat
        self.next_row = first_row
        self.bytes = 0
        self._fragments: list[str] = []
        self._encoded: list[bytes] = []
        self._labels: list[int | None] = []

    def __len__(self) -> int:
        return len(self._fragments)

    def append(self, name: bytes, encoded: bytes, label: int | None) -> None:
        fragment = member_fragment(name)
        self._fragments.append(f"{fragment};row={self.next_row}" if self._names_repeat else fragment)
        self._encoded.append(encoded)
        self._labels.append(label)
        self.next_row += 1
        self.bytes += len(encoded)

    def take(self) -> ImageBatch:
        """Return and remove the collected images."""
        ends = np.cumsum([0, *map(len, self._encoded)], dtype=np.int32)
        # Join the bytes instead of using pa.array, whose builder over-allocates by doubling its buffer.
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(self._encoded))]
        encoded = pa.Array.from_buffers(pa.binary(), len(self), buffers)
        batch = ImageBatch(pa.array(self._fragments, pa.string()), encoded, pa.array(self._labels, pa.int16()))
        self._fragments, self._encoded, self._labels = [], [], []
        self.bytes = 0
        return batch
