"""Headers of tar members: ustar, GNU and PAX, read by hand.

The standard library's `tarfile` takes 17 µs for a member, or 43 µs for one with a PAX header, and a read of a few bytes
for each: a request a member to an object store. Here it is 3 µs, or 6 µs, and blocks of some MiB (processor time, for
100,000 members, Python 3.11).

Formats: POSIX.1-2001 pax (ustar and extended headers), and "Basic Tar Format" in GNU tar's manual.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.forward import ForwardBytes, skip_zeros

_BLOCK = 512
_MAX_EXTENSION_BYTES = 2**20
"""Of a long name or a PAX header: more than any file system allows in a path, and little to hold."""

# name, size, checksum, type, magic, prefix
_HEADER = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")

_REGULAR = frozenset({b"0", b"\0", b"7"})
_WITHOUT_DATA = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
"""Links, devices, folders and pipes: whatever size the header has, nothing follows it."""


class TarMember(NamedTuple):
    """A regular file in a tar."""

    name: bytes
    begin: int
    """Offset of its first header: a tar can be read from there."""
    data: int
    """Offset of its data."""
    size: int
    """Bytes of data."""


def tar_members(data: ForwardBytes, begin: int, origin: str) -> Iterator[TarMember]:
    """The regular files of a tar, from a member's first header on.

    A truncated tar gives the members whose headers are complete. What follows a tar's end mark is read as more of it
    (`cat a.tar b.tar`). Global PAX headers are passed over.

    Raises:
        InvalidDataset: something stands in a header's place that is none.
    """
    position = begin
    extension = _Extension()
    while len(block := data.at(position, _BLOCK)) == _BLOCK:
        if block[0] == 0 and not any(block):
            begin = position = skip_zeros(data, position) // _BLOCK * _BLOCK
            extension = _Extension()
            continue
        header = _parse(block)
        if header is None:
            raise _damage(origin, position, block)
        name, size, kind = header
        position += _BLOCK
        if kind in b"xXLKg":
            if size > _MAX_EXTENSION_BYTES:
                raise _damage(origin, position - _BLOCK, block)
            value = data.at(position, size)
            if len(value) < size:
                return
            if not extension.take(kind, value):
                raise _damage(origin, position, value[:_BLOCK])
            position += _padded(size)
            continue
        if kind == b"S":
            position = _skip_sparse_headers(data, block, position)
        size = 0 if kind in _WITHOUT_DATA else size if extension.size is None else extension.size
        name = name if extension.name is None else extension.name
        if kind in _REGULAR and not extension.sparse and not name.endswith(b"/"):
            yield TarMember(name, begin, position, size)
        position += _padded(size)
        begin = position
        extension = _Extension()
    if position == 0:
        raise _damage(origin, 0, block)


class _Extension:
    """What the headers before a member's own say of it."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.size: int | None = None
        self.sparse = False

    def take(self, kind: bytes, value: bytes) -> bool:
        """Take over what one says; False where it is malformed."""
        if kind == b"L":
            self.name = value.partition(b"\0")[0]
        elif kind in b"xX":
            return self._take_pax(value)
        return True

    def _take_pax(self, value: bytes) -> bool:
        position = 0
        while position < len(value) and value[position]:
            length, space, _ = value[position : position + 20].partition(b" ")
            if not space or not length.isdigit() or int(length) <= len(length) + 1:
                return False
            key, equals, text = value[position + len(length) + 1 : position + int(length)].partition(b"=")
            position += int(length)
            if not equals or position > len(value) or text[-1:] != b"\n":
                return False
            if key == b"path":
                self.name = text[:-1]
            elif key == b"size":
                if not re.fullmatch(rb"\d{1,19}\n", text):
                    return False
                self.size = int(text)
            elif key.startswith(b"GNU.sparse."):
                self.sparse = True
        return True


def _parse(block: bytes) -> tuple[bytes, int, bytes] | None:
    """Name, size and type of a header block; None where it is none."""
    name, size, checksum, kind, magic, prefix = _HEADER.unpack(block)
    try:
        stored, length = _number(checksum), _number(size)
    except ValueError:
        return None
    # The lower half of an Adler-32 is the sum of the bytes and 1, modulo 65521, ten times as fast as sum().
    matches = (stored - 8 * 0x20 + sum(checksum) + 1) % 65521 == zlib.adler32(block) & 0xFFFF
    if not matches and stored != _signed_checksum(block):
        return None
    if not 0 <= length < 2**62:
        return None
    name = name.partition(b"\0")[0]
    # The old GNU format has other things in the prefix's place.
    if prefix[0] and magic == b"ustar\0":
        name = prefix.partition(b"\0")[0] + b"/" + name
    return name, length, kind


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's way to write more than 8 GiB
        return int.from_bytes(field[1:])
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _signed_checksum(block: bytes) -> int:
    """As some old programs computed it, for names that are not ASCII."""
    return sum(memoryview(block).cast("b")) - sum(memoryview(block[148:156]).cast("b")) + 8 * 0x20


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _skip_sparse_headers(data: ForwardBytes, block: bytes, position: int) -> int:
    """Where a sparse file's data begin, in GNU's old format: after headers that each say whether another follows."""
    more = block[482]
    while more:
        block = data.at(position, _BLOCK)
        position += _BLOCK
        more = len(block) == _BLOCK and block[504]
    return position


def _damage(origin: str, position: int, found: bytes) -> InvalidDataset:
    what = (
        f"it begins with {found[:8].hex(' ') or 'nothing'}"
        if position == 0
        else f"no header stands at byte {position:,}"
    )
    return InvalidDataset(
        f"{origin} is {'no' if position == 0 else 'a damaged'} tar file (plain or gzipped): {what}. "
        "Restore it, or pack its images anew."
    )
