"""Read the lines of a text file in bounded memory, whatever its encoding and line endings."""

import codecs
from collections.abc import Iterator
from typing import Any, NamedTuple

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.forward import BLOCK_BYTES

MAX_LINE_BYTES = 2**20

_SAMPLE_BYTES = 8192
"""Bytes that show the encoding."""
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # starts with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Line(NamedTuple):
    """A line without its ending."""

    number: int
    """From 1."""
    text: str
    """Empty if the line is unusable."""
    problem: str = ""
    """Why the line is unusable, as the end of a sentence that starts with the line."""


def read_lines(file: Any, origin: str) -> Iterator[Line]:
    r"""Read the lines that aren't blank.

    The text is UTF-8, or UTF-16 or UTF-32 with or without a byte-order mark. A line that isn't UTF-8 is read as
    Windows-1252, the encoding of older Windows programs and, apart from some punctuation, Latin-1. Lines end with `\n`,
    `\r\n`, or `\r` if there is no `\n` in the first block.

    Args:
        file: random-access `pyarrow.NativeFile`.
        origin: URI of the file, for error messages.

    Raises:
        InvalidDataset: the file isn't text.
    """
    number = 0
    for data in _complete_lines(_utf8_blocks(file, origin)):
        for text in _decoded(data):
            number += 1
            line = text.removesuffix("\r")
            if len(line) > MAX_LINE_BYTES:
                yield Line(number, "", f"is longer than {MAX_LINE_BYTES:,} bytes")
            elif "\0" in line:
                yield Line(number, "", "contains a NUL character")
            elif line and not line.isspace():
                yield Line(number, line)


def _complete_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    r"""Cut blocks between lines. Of a line that is too long, only a part is kept, which is also too long."""
    rest = b""
    for block in blocks:
        complete, newline, last = block.rpartition(b"\n")
        if newline:
            yield rest + complete
            rest = last
        else:
            rest += last
        rest = rest[: MAX_LINE_BYTES * 4]  # a character has up to four bytes
    if rest:
        yield rest


def _decoded(lines: bytes) -> Iterator[str]:
    try:
        yield from lines.decode().split("\n")
    except UnicodeDecodeError:
        for line in lines.split(b"\n"):
            yield decoded_line(line)


def decoded_line(line: bytes) -> str:
    """Decode a line that is UTF-8 or else Windows-1252. Bytes that are neither become those of Latin-1."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")


def _utf8_blocks(file: Any, origin: str) -> Iterator[bytes]:
    r"""Read blocks, converted to UTF-8 and to lines that end with `\n`, without a byte-order mark."""
    sample = file.read_at(_SAMPLE_BYTES, 0)
    mark, encoding = _encoding(sample, origin)
    decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)("replace")
    position = len(mark)
    returns_only: bool | None = None
    while block := file.read_at(BLOCK_BYTES, position):
        position += len(block)
        data = block if decoder is None else decoder.decode(block).encode()
        if returns_only is None:
            returns_only = b"\n" not in data
        yield data.replace(b"\r", b"\n") if returns_only else data


def _encoding(sample: bytes, origin: str) -> tuple[bytes, str]:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return mark, encoding
    if b"\0" not in sample:
        return b"", "utf-8"
    for encoding in ("utf-16-le", "utf-16-be"):
        zeros = sample[1::2] if encoding == "utf-16-le" else sample[::2]
        if zeros.count(0) > len(zeros) / 2 and sample.count(0) < 1.5 * zeros.count(0):
            return b"", encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError as error:
        number = 1 + sample.count(b"\n", 0, error.start)
        raise InvalidDataset(
            f"{origin} isn't a text file: line {number:,} has NUL characters and is "
            "neither UTF-8 nor UTF-16. If it holds images, give it the ending of its format."
        ) from None
    return b"", "utf-8"
