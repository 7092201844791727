"""Parse the headers of tar members: ustar, GNU and PAX.

This parser is faster than the standard library's `tarfile`. A member takes 3 µs instead of 17 µs, or 6 µs instead of
43 µs with a PAX header (CPU time, 100,000 members, Python 3.11). It also reads blocks of several MiB, whereas `tarfile`
would send one request per member to an object store.

Sources: POSIX.1-2001 pax (ustar and extended headers), and "Basic Tar Format" in GNU tar's manual.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.content import describe_start
from fmnist_model.formats.forward import ForwardBytes, skip_zeros

_BLOCK = 512
_MAX_EXTENSION_BYTES = 2**20
"""Maximum size of a long name or a PAX header. No file system allows paths of this length."""

# name, size, checksum, type, magic, prefix
_HEADER = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")

_REGULAR = frozenset({b"0", b"\0", b"7"})
_WITHOUT_DATA = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
"""Types of links, devices, folders and pipes. They have no data, even if the header gives a size."""


class TarMember(NamedTuple):
    """A regular file in a tar, or bytes that aren't a member."""

    name: bytes
    """Path in the tar, in the tar's encoding."""
    start: int
    """Offset of the member's first header, from which a tar can be read."""
    data: int
    """Offset of the data."""
    size: int
    """Size of the data in bytes."""
    is_damage: bool = False
    """Whether a header should be at `start`, but isn't. The next member is the first one with a valid header."""


def tar_members(data: ForwardBytes, start: int, origin: str) -> Iterator[TarMember]:
    """Yield the regular files of a tar.

    A truncated tar yields the members with complete headers. Reading continues after an end mark, as needed for
    `cat a.tar b.tar`, and after damage, with the next valid header, like GNU tar. Global PAX headers are skipped.

    Args:
        data: the tar's bytes.
        start: offset of a member's first header.
        origin: URI of the tar, for error messages.

    Raises:
        InvalidDataset: the file isn't a tar.
    """
    position = start
    extension = _Extension()
    while len(block := data.at(position, _BLOCK)) == _BLOCK:
        if block[0] == 0 and not any(block):
            start = position = skip_zeros(data, position) // _BLOCK * _BLOCK
            extension = _Extension()
            continue
        header = _parse(block)
        if header is None and position == 0:
            raise InvalidDataset(f"{origin} is not a tar file{_description(block)}. Restore or recreate it.")
        if header is not None and header[2] in b"xXLKg":
            value = data.at(position + _BLOCK, min(header[1], _MAX_EXTENSION_BYTES + 1))
            if len(value) < min(header[1], _MAX_EXTENSION_BYTES):
                return
            if header[1] <= _MAX_EXTENSION_BYTES and extension.take(header[2], value):
                position += _BLOCK + _padded(header[1])
                continue
            header = None
        if header is None:
            yield TarMember(b"", position, position, 0, is_damage=True)
            start = position = _next_header(data, position + _BLOCK)
            extension = _Extension()
            continue
        name, size, kind = header
        position += _BLOCK
        if kind == b"S":
            position = _skip_sparse_headers(data, block, position)
        size = 0 if kind in _WITHOUT_DATA else size if extension.size is None else extension.size
        name = name if extension.name is None else extension.name
        if kind in _REGULAR and not extension.sparse and not name.endswith(b"/"):
            yield TarMember(name, start, position, size)
        position += _padded(size)
        start = position
        extension = _Extension()
    if position == 0:
        raise InvalidDataset(f"{origin} is not a tar file{_description(block)}. Restore or recreate it.")


class _Extension:
    """Values from the headers that precede a member's own and override it."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.size: int | None = None
        self.sparse = False

    def take(self, kind: bytes, value: bytes) -> bool:
        """Store the values of one extension header. Return False if it is malformed."""
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
    """Return the name, size and type in a header block, or None if it isn't a header."""
    name, size, checksum, kind, magic, prefix = _HEADER.unpack(block)
    try:
        stored, length = _number(checksum), _number(size)
    except ValueError:
        return None
    # The lower half of an Adler-32 is the sum of the bytes plus 1, modulo 65521. It is ten times as fast as sum().
    matches = (stored - 8 * 0x20 + sum(checksum) + 1) % 65521 == zlib.adler32(block) & 0xFFFF
    if not matches and stored != _signed_checksum(block):
        return None
    if not 0 <= length < 2**62:
        return None
    name = name.partition(b"\0")[0]
    # The old GNU format uses the bytes of the prefix for other fields.
    if prefix[0] and magic == b"ustar\0":
        name = prefix.partition(b"\0")[0] + b"/" + name
    return name, length, kind


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's encoding of sizes above 8 GiB
        return int.from_bytes(field[1:])
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _signed_checksum(block: bytes) -> int:
    """Return the checksum of signed bytes, which some old programs wrote. It differs if a name isn't ASCII."""
    return sum(memoryview(block).cast("b")) - sum(memoryview(block[148:156]).cast("b")) + 8 * 0x20


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _skip_sparse_headers(data: ForwardBytes, block: bytes, position: int) -> int:
    """Return the offset of a sparse file's data in GNU's old format.

    The data follows a chain of extra headers. A flag in each header says whether another one follows.
    """
    more = block[482]
    while more:
        block = data.at(position, _BLOCK)
        position += _BLOCK
        more = len(block) == _BLOCK and block[504]
    return position


def _next_header(data: ForwardBytes, position: int) -> int:
    """Return the offset of the next valid header, or of the end. Very old tars without a magic number have none."""
    while len(block := data.at(position, _BLOCK)) == _BLOCK:
        if block[257:262] == b"ustar" and _parse(block) is not None:
            return position
        position += _BLOCK
    return position


def _description(start: bytes) -> str:
    """Return what is known about a file that isn't a tar, for an error message."""
    return f": {describe_start(start) or 'it starts with ' + start[:8].hex(' ')}"
