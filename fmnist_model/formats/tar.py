"""WebDataset tars, and any other tar with image files in it, plain or gzipped.

Members whose names end as image files do are images. Consecutive members of one *sample* share a label: their names are
the same up to the first dot of the last path component. The label is that of the sample's `.cls` member, or else of
`label` or `cls` in its `.json` member. As in WebDataset, a member whose last path component begins with a dot belongs
to no sample and is passed over (macOS packs such beside every file), and so are links, folders and sparse files.

An image's fragment is `#member=` and the member's name as it stands in the tar. Control characters and bytes that are
not UTF-8 are written `\\xNN`, two hexadecimal digits a byte, and a backslash that could be mistaken for the beginning
of that as `\\x5c`: replacing every `\\xNN` by its byte gives back the name. In a tar in which two images have the same
name, all fragments also have the image's number: `#member=cats/1.png;row=17`.

Source of the sample rule: https://github.com/webdataset/webdataset (`base_plus_ext`, `group_by_keys`).
"""

import json
import re
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
from fmnist_model.formats.interface import BATCH_BYTES, ContainerPiece, ImageBatch
from fmnist_model.formats.labels import label_of
from fmnist_model.formats.tar_headers import tar_members
from fmnist_model.images.decode import is_image_name

MAX_IMAGE_BYTES = 512 * 2**20
"""Of a larger member only that much is handed on, and the decoder refuses it: 64 megapixels of RGBA at 16 bits."""

_MAX_LABEL_BYTES = 2**20
_SAMPLE_MEMBERS, _SAMPLE_BYTES = 256, BATCH_BYTES
"""A sample is held until its label is known. `frame.0001.png`, `frame.0002.png`, … are a single one by their names: at
this size it ends, and the next member begins another."""

_NAMES_REPEAT = 1
"""Added to a piece's offset, a multiple of 512, where two images of the container have the same name."""


def pieces(
    file: Any, origin: str, *, target_rows: int, target_bytes: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[ContainerPiece]:
    """Cut a tar between samples; a gzipped one is a single piece, and decompressed to count its images.

    A tar that is truncated has the images that begin before its end.

    Args:
        file: a random-access `pyarrow.NativeFile`.
        origin: its URI, for messages.
        target_rows: a piece ends with the sample that gives it as many images.
        target_bytes: it ends before that with the sample that gives it as many bytes.
        block_bytes: read at once. Members that are larger are not read to their ends: where requests cost nothing
            (local files with large images), a smaller block saves reading.

    Raises:
        InvalidDataset: it is no tar, or damaged.
    """
    if is_gzipped(file):
        found, names_repeat = _scan(file, origin, 2**62, 2**62, block_bytes)
        found = [replace(piece, offset=0, size=file.size()) for piece in found]
    else:
        found, names_repeat = _scan(file, origin, target_rows, target_bytes, block_bytes)
    for piece in found:
        yield replace(piece, offset=piece.offset + _NAMES_REPEAT) if names_repeat else piece


def read(file: Any, origin: str, piece: ContainerPiece, *, batch_rows: int) -> Iterator[ImageBatch]:
    """Read a piece's images as they lie in the tar; the last image of a truncated tar ends where the file does.

    Raises:
        InvalidDataset: the file is not the one that was cut into pieces.
    """
    begin = piece.offset - piece.offset % 2
    data = open_forward(file, origin, begin=begin, end=begin + piece.size + _LOOKAHEAD_BYTES)
    batch = _Batch(piece.first_row, names_repeat=begin != piece.offset)
    for name, encoded, label in _labelled_images(data, begin, piece.rows, origin):
        batch.append(name, encoded, label)
        if len(batch) >= batch_rows or batch.bytes >= BATCH_BYTES:
            yield batch.take()
    if len(batch):
        yield batch.take()
    if batch.next_row != piece.first_row + piece.rows:
        raise InvalidDataset(
            f"{origin} has {batch.next_row - piece.first_row} images from byte {begin:,} on, where {piece.rows} were "
            "planned: it was replaced since. Run the job again."
        )


_LOOKAHEAD_BYTES = 4096
"""The headers of the member after a piece, by which its last sample is known to have ended."""


def member_fragment(name: bytes) -> str:
    """The fragment of an image by its member's name; see the module's documentation."""
    if name.isascii() and not _TO_ESCAPE.search(name):
        return f"#member={name.decode()}"
    escaped = _TO_ESCAPE.sub(lambda found: b"\\x%02x" % found[0][0], name)
    return "#member=" + escaped.decode("utf-8", "backslashreplace")


_TO_ESCAPE = re.compile(rb"[\x00-\x1f\x7f]|\\(?=x[0-9a-fA-F]{2})")


def _scan(
    file: Any, origin: str, target_rows: int, target_bytes: int, block_bytes: int
) -> tuple[list[ContainerPiece], bool]:
    """The pieces, and whether two images have the same name."""
    found: list[ContainerPiece] = []
    names = array("Q")
    samples = _Samples()
    first_row = rows = begin = end = sample_begin = 0
    for member in tar_members(open_forward(file, origin, block_bytes=block_bytes), 0, origin):
        key, extension = _split_name(member.name)
        if not key:
            continue
        if samples.begins(key, member.size):
            sample_begin = member.begin
            if rows and (rows >= target_rows or end - begin >= target_bytes):
                found.append(ContainerPiece(first_row, rows, begin, end - begin))
                first_row, rows = first_row + rows, 0
        if _is_image(extension):
            begin = begin if rows else sample_begin
            rows += 1
            names.append(int.from_bytes(blake2b(member.name, digest_size=8).digest()))
        end = member.data + member.size
    if rows:
        found.append(ContainerPiece(first_row, rows, begin, min(end, max(file.size(), begin)) - begin))
    return found, len(np.unique(np.asarray(names))) < len(names)


def _labelled_images(
    data: ForwardBytes, begin: int, rows: int, origin: str
) -> Iterator[tuple[bytes, bytes, int | None]]:
    """Name, bytes and label of as many images, sample by sample."""
    samples = _Samples()
    images: list[tuple[bytes, bytes]] = []
    labels: dict[bytes, int | None] = {}
    for member in tar_members(data, begin, origin):
        key, extension = _split_name(member.name)
        if not key:
            continue
        if samples.begins(key, member.size):
            yield from _sample(images, labels)
            rows -= len(images)
            images, labels = [], {}
            if rows <= 0:
                return
        if _is_image(extension):
            images.append((member.name, data.at(member.data, min(member.size, MAX_IMAGE_BYTES))))
        elif extension in _LABEL_READERS and member.size <= _MAX_LABEL_BYTES:
            labels[extension] = _LABEL_READERS[extension](data.at(member.data, member.size))
    yield from _sample(images, labels)


def _sample(
    images: list[tuple[bytes, bytes]], labels: dict[bytes, int | None]
) -> Iterator[tuple[bytes, bytes, int | None]]:
    label = labels.get(b"cls")
    if label is None:
        label = labels.get(b"json")
    for name, encoded in images:
        yield name, encoded, label


class _Samples:
    """Tells where samples begin, from the container's beginning or any sample's with the same result."""

    def __init__(self) -> None:
        self._key = b""
        self._members = self._bytes = 0

    def begins(self, key: bytes, size: int) -> bool:
        """Whether the next member, with that key and size, begins a sample."""
        begins = key != self._key or self._members >= _SAMPLE_MEMBERS or self._bytes >= _SAMPLE_BYTES
        if begins:
            self._key = key
            self._members = self._bytes = 0
        self._members += 1
        self._bytes += size
        return begins


def _split_name(name: bytes) -> tuple[bytes, bytes]:
    """A sample's key, empty where the member belongs to none, and what the member is in it."""
    component = name.rfind(b"/") + 1
    dot = name.find(b".", component)
    return (name[:dot], name[dot + 1 :].lower()) if dot > component else (b"", b"")


def _is_image(extension: bytes) -> bool:
    return _is_image_suffix(extension[extension.rfind(b".") + 1 :])


@lru_cache(maxsize=1024)
def _is_image_suffix(suffix: bytes) -> bool:
    return is_image_name("image." + suffix.decode("utf-8", "replace"))


def _class_in_text(data: bytes) -> int | None:
    return label_of(data.decode("utf-8", "replace"))


def _class_in_json(data: bytes) -> int | None:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    label = label_of(fields.get("label"))
    return label_of(fields.get("cls")) if label is None else label


_LABEL_READERS = {b"cls": _class_in_text, b"json": _class_in_json}


class _Batch:
    """Images on their way into an `ImageBatch`."""

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
        """What was appended since the last time."""
        ends = np.cumsum([0, *map(len, self._encoded)], dtype=np.int32)
        # Joined, and not by pa.array, whose builder doubles its room as it goes.
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(self._encoded))]
        encoded = pa.Array.from_buffers(pa.binary(), len(self), buffers)
        batch = ImageBatch(pa.array(self._fragments, pa.string()), encoded, pa.array(self._labels, pa.int8()))
        self._fragments, self._encoded, self._labels = [], [], []
        self.bytes = 0
        return batch
