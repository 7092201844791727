"""Read WebDataset tars and other tars with image files, plain or compressed by gzip, bzip2 or Zstandard.

A member is an image if its name has the suffix of an image file. Consecutive members whose names are equal up to the
first dot of the last path component form a *sample*, and share its label. The label comes from the sample's `.cls`
member, or else from a field such as `label` in its `.json` member, or else from its `.txt` member. If the members of a
tar aren't sorted, the labels are looked up by name, and that takes a second pass. As in WebDataset, members whose last
path component starts with a dot are skipped (macOS adds one for every file). Links, folders and sparse files are
skipped too. If headers are damaged, the images between them are lost, and count as one image with a reason.

An image's fragment is `#member=` and the member's name (`interface.member_fragment`). If two images in a tar have the
same name, all fragments in it also have the image's number: `#member=cats/1.png;row=17`.

Source of the sample rule: https://github.com/webdataset/webdataset (`base_plus_ext`, `group_by_keys`).
"""

import json
import logging
from array import array
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.forward import BLOCK_BYTES, ForwardBytes, compression_of, open_forward
from fmnist_model.formats.interface import (
    BATCH_BYTES,
    MAX_IMAGE_BYTES,
    ContainerPiece,
    ImageBatch,
    member_fragment,
    too_large,
)
from fmnist_model.formats.labels import LABEL_COLUMNS, is_unknown_label, parse_label, report_unknown_label
from fmnist_model.formats.tar_headers import TarMember, tar_members
from fmnist_model.images.endings import is_image_name

_MAX_LABEL_BYTES = 2**20
"""Maximum size of a `.cls` or `.json` member. A larger one gives no label."""

_SAMPLE_MEMBERS, _SAMPLE_BYTES = 256, BATCH_BYTES
"""Maximum number of members and bytes in a sample, after which the next member starts a new one.

A sample is held in memory until its label is known, and by its names `frame.0001.png`, `frame.0002.png`, … would be a
single sample.
"""

_NAMES_REPEAT, _LABELS_APART = 1, 2
"""Flags added to a piece's offset, which is a multiple of 512: two images of the tar have the same name, and labels are
not next to their images."""

_PIECES_IN_ONE = 8
"""Number of pieces to combine if labels are apart from their images, because each needs a pass through the tar."""

_MAX_LABELS = 20_000_000
"""Maximum number of labels to look up by name. Each takes 10 bytes of memory."""


def pieces(
    file: Any, origin: str, *, target_rows: int, target_bytes: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[ContainerPiece]:
    """Cut a tar into pieces between samples.

    A compressed tar is a single piece, and is decompressed to count its images. A truncated tar has all images that
    start before its end.

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
    if compression_of(file):
        scan = _Scan(file.size(), 2**62, 2**62)
        found = [replace(piece, offset=0, size=file.size()) for piece in scan.run(file, origin, block_bytes)]
    else:
        scan = _Scan(file.size(), target_rows, target_bytes)
        found = scan.run(file, origin, block_bytes)
    labels_apart = scan.labels_are_apart()
    flags = _NAMES_REPEAT * scan.names_repeat() + _LABELS_APART * labels_apart
    for first in range(0, len(found), _PIECES_IN_ONE if labels_apart else 1):
        combined = found[first : first + _PIECES_IN_ONE] if labels_apart else [found[first]]
        start, last = combined[0], combined[-1]
        rows, size = last.first_row + last.rows - start.first_row, last.offset + last.size - start.offset
        yield ContainerPiece(start.first_row, rows, start.offset + flags, size)


def read(file: Any, origin: str, piece: ContainerPiece, *, batch_rows: int) -> Iterator[ImageBatch]:
    """Read the images of a piece and their labels.

    The last image of a truncated tar is returned incomplete. See `fmnist_model.formats.read` for the arguments.

    Raises:
        InvalidDataset: the file is damaged, or has changed since it was cut into pieces.
    """
    flags = piece.offset % 512
    start = piece.offset - flags
    data = open_forward(file, origin, start=start, end=start + piece.size + _LOOKAHEAD_BYTES)
    batch = _Batch(piece.first_row, names_repeat=bool(flags & _NAMES_REPEAT))
    labels = _LabelIndex(file, origin) if flags & _LABELS_APART else None
    for image in _images(data, start, piece.rows, origin):
        label = labels.find(image.name) if labels and image.label is None else image.label
        batch.append(image, label)
        if len(batch) >= batch_rows or batch.bytes >= BATCH_BYTES:
            yield batch.take()
    if len(batch):
        yield batch.take()
    if batch.next_row != piece.first_row + piece.rows:
        raise InvalidDataset(
            f"{origin} has {batch.next_row - piece.first_row} images from byte {start:,}, but {piece.rows} were "
            "planned. The file was replaced after planning. Run the job again."
        )


_log = logging.getLogger(__name__)

_LOOKAHEAD_BYTES = 4096
"""Bytes to read after a piece, for the header of the next member, which ends the last sample."""


class _Scan:
    """Walks through the headers of a tar and cuts it into pieces."""

    def __init__(self, file_size: int, target_rows: int, target_bytes: int) -> None:
        self._file_size = file_size
        self._target_rows = target_rows
        self._target_bytes = target_bytes
        self._found: list[ContainerPiece] = []
        self._names = array("Q")
        self._unlabelled, self._labels = array("Q"), array("Q")
        """Keys of samples with images and no label, and of samples with a label and no image."""

    def run(self, file: Any, origin: str, block_bytes: int) -> list[ContainerPiece]:
        """Return the pieces."""
        samples = _Samples()
        first_row = rows = start = end = sample_start = 0
        key, has_image, has_label = b"", False, False
        for member in tar_members(open_forward(file, origin, block_bytes=block_bytes), 0, origin):
            name, extension = _split_name(member)
            if not name:
                continue
            if samples.starts(name, member.size):
                self._end_sample(key, has_image, has_label)
                key, has_image, has_label, sample_start = name, False, False, member.start
                if rows and (rows >= self._target_rows or end - start >= self._target_bytes):
                    self._found.append(ContainerPiece(first_row, rows, start, end - start))
                    first_row, rows = first_row + rows, 0
            if _is_image(extension) or member.is_damage:
                has_image = True
                start = start if rows else sample_start
                rows += 1
                self._names.append(_hash(member.name or b"%d" % member.start))
            else:
                has_label |= extension in _LABEL_RANKS and member.size <= _MAX_LABEL_BYTES
            end = member.data + member.size
        self._end_sample(key, has_image, has_label)
        if rows:
            end = min(end, max(self._file_size, start))
            self._found.append(ContainerPiece(first_row, rows, start, end - start))
        return self._found

    def names_repeat(self) -> bool:
        """Return whether two images have the same name."""
        return len(np.unique(np.asarray(self._names))) < len(self._names)

    def labels_are_apart(self) -> bool:
        """Return whether the label of an image is in another place of the tar."""
        return len(np.intersect1d(np.asarray(self._unlabelled), np.asarray(self._labels))) > 0

    def _end_sample(self, key: bytes, has_image: bool, has_label: bool) -> None:
        if has_image != has_label:
            (self._unlabelled if has_image else self._labels).append(_hash(key))


def _hash(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest())


class _LabelIndex:
    """The labels of all samples in a tar, found by their keys."""

    def __init__(self, file: Any, origin: str) -> None:
        keys, ranks, labels = array("Q"), array("b"), array("b")
        data = open_forward(file, origin)
        for member in tar_members(data, 0, origin):
            key, extension = _split_name(member)
            if extension not in _LABEL_RANKS or member.size > _MAX_LABEL_BYTES:
                continue
            label = _read_label(extension, data.at(member.data, member.size), origin)
            if label is not None:
                keys.append(_hash(key))
                ranks.append(_LABEL_RANKS[extension])
                labels.append(label)
            if len(labels) == _MAX_LABELS:
                _log.warning("%s has more than %s labels. The others are left out.", origin, f"{_MAX_LABELS:,}")
                break
        order = np.lexsort((np.asarray(ranks), np.asarray(keys)))
        self._keys, self._labels = np.asarray(keys)[order], np.asarray(labels)[order]

    def find(self, name: bytes) -> int | None:
        """Return the label of the sample that a member belongs to."""
        key = np.uint64(_hash(_split(name)[0]))
        position = int(np.searchsorted(self._keys, key))
        found = position < len(self._keys) and self._keys[position] == key
        return int(self._labels[position]) if found else None


class _Image(NamedTuple):
    """An image in a tar."""

    name: bytes
    encoded: bytes
    label: int | None = None
    reason: str | None = None
    """Why it can't be read."""
    start: int = 0
    """Offset of the first header."""


def _images(data: ForwardBytes, start: int, rows: int, origin: str) -> Iterator[_Image]:
    """Yield `rows` images, sample by sample."""
    samples = _Samples()
    images: list[_Image] = []
    labels: dict[bytes, int | None] = {}
    for member in tar_members(data, start, origin):
        key, extension = _split_name(member)
        if not key:
            continue
        if samples.starts(key, member.size):
            yield from _with_label(images, labels)
            rows -= len(images)
            images, labels = [], {}
            if rows <= 0:
                return
        if member.is_damage:
            reason = f"damaged: the tar has no valid header at byte {member.start:,}"
            images.append(_Image(b"", b"", reason=reason, start=member.start))
        elif _is_image(extension):
            images.append(_read_image(data, member))
        elif extension in _LABEL_RANKS and member.size <= _MAX_LABEL_BYTES:
            labels[extension] = _read_label(extension, data.at(member.data, member.size), origin)
    yield from _with_label(images, labels)


def _read_image(data: ForwardBytes, member: TarMember) -> _Image:
    if member.size > MAX_IMAGE_BYTES:
        return _Image(member.name, b"", reason=too_large(member.size))
    return _Image(member.name, data.at(member.data, member.size))


def _with_label(images: list[_Image], labels: dict[bytes, int | None]) -> Iterator[_Image]:
    label = next((labels[extension] for extension in _LABEL_RANKS if labels.get(extension) is not None), None)
    if label is None:
        yield from images
        return
    for name, encoded, _, reason, start in images:
        yield _Image(name, encoded, label, reason, start)


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


_DAMAGE = b"\0"
"""Key of a sample that consists of damage. No name contains it."""


def _split_name(member: TarMember) -> tuple[bytes, bytes]:
    """Return the key of a member's sample, empty if it belongs to none, and the member's extension."""
    return (_DAMAGE, b"") if member.is_damage else _split(member.name)


def _split(name: bytes) -> tuple[bytes, bytes]:
    component = name.rfind(b"/") + 1
    dot = name.find(b".", component)
    return (name[:dot], name[dot + 1 :].lower()) if dot > component else (b"", b"")


def _is_image(extension: bytes) -> bool:
    return _is_image_suffix(extension[extension.rfind(b".") + 1 :])


@lru_cache(maxsize=1024)
def _is_image_suffix(suffix: bytes) -> bool:
    return is_image_name("image." + suffix.decode("utf-8", "replace"))


_LABEL_RANKS = {b"cls": 0, b"json": 1, b"txt": 2}
"""Extensions of members that can hold the label. The one with the lowest rank counts."""

_CACHED_BYTES = 32
"""Size of a text up to which its class is remembered."""

_LABEL_FIELDS = (*LABEL_COLUMNS, "cls", "class_name")
"""Fields of a `.json` member that can hold the label, in order of preference. Matching ignores case."""


def _read_label(extension: bytes, data: bytes, origin: str) -> int | None:
    """Return the label in a member. A `.cls` or `.json` member that names no class is logged."""
    if extension != b"json" and len(data) <= _CACHED_BYTES and (label := _parse_text(data)) is not None:
        return label
    values = _values_in_json(data) if extension == b"json" else [data]
    label = next((found for value in values if (found := parse_label(value)) is not None), None)
    if label is None and extension != b"txt" and (unknown := next(filter(is_unknown_label, values), None)) is not None:
        report_unknown_label(origin, unknown)
    return label


@lru_cache(maxsize=1024)
def _parse_text(data: bytes) -> int | None:
    return parse_label(data)


def _values_in_json(data: bytes) -> list[object]:
    """Return the values of the fields that can hold a label, or the value itself."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, dict):
        return [found] if isinstance(found, int | float | str) else []
    fields = {name.lower(): value for name, value in found.items()}
    return [fields[name] for name in _LABEL_FIELDS if name in fields]


class _Batch:
    """Collect images for an `ImageBatch`."""

    def __init__(self, first_row: int, *, names_repeat: bool) -> None:
        self._names_repeat = names_repeat
        self.next_row = first_row
        self.bytes = 0
        self._fragments: list[str] = []
        self._encoded: list[bytes] = []
        self._labels: list[int | None] = []
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._fragments)

    def append(self, image: _Image, label: int | None) -> None:
        if image.reason is not None:
            self._reasons[len(self)] = image.reason
        fragment = member_fragment(image.name) if image.name else f"#member=@{image.start}"
        self._fragments.append(f"{fragment};row={self.next_row}" if self._names_repeat else fragment)
        self._encoded.append(image.encoded)
        self._labels.append(label)
        self.next_row += 1
        self.bytes += len(image.encoded)

    def take(self) -> ImageBatch:
        """Return and remove the collected images."""
        ends = np.cumsum([0, *map(len, self._encoded)], dtype=np.int32)
        # Join the bytes instead of using pa.array, whose builder over-allocates by doubling its buffer.
        validity = None
        if self._reasons:
            present = np.array([row not in self._reasons for row in range(len(self))])
            validity = pa.py_buffer(np.packbits(present, bitorder="little"))
        buffers = [validity, pa.py_buffer(ends), pa.py_buffer(b"".join(self._encoded))]
        encoded = pa.Array.from_buffers(pa.binary(), len(self), buffers)
        labels = pa.array(self._labels, pa.int16())
        batch = ImageBatch(pa.array(self._fragments, pa.string()), encoded, labels, self._reasons)
        self._fragments, self._encoded, self._labels, self._reasons = [], [], [], {}
        self.bytes = 0
        return batch
