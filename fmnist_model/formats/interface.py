"""Define what every container format produces: pieces for planning and batches of images for reading."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCH_BYTES = 64 * 2**20
"""Size at which a batch ends early. It bounds a worker's memory if images are large."""

MAX_IMAGE_BYTES = 256 * 2**20
"""Maximum size of an image file. The decoder's limit is 64 megapixels, and no such picture is larger."""


@dataclass(frozen=True)
class ContainerPiece:
    """Consecutive images of a container that one worker reads together."""

    first_row: int
    """Number of the first image in the container, counted from 0."""
    rows: int
    """Number of images."""
    offset: int
    """Position at which to start reading. Only the format that made the piece can interpret it."""
    size: int
    """Approximate number of bytes to read, used to balance the work."""


def too_large(size: int) -> str:
    """Return the reason for quarantine of an image with more than `MAX_IMAGE_BYTES` bytes."""
    return f"too large: {size:,} bytes"


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive images as stored in the container: three columns of the same length."""

    fragments: pa.StringArray
    """What to append to the container's URI to get an image's: `#row=17` or `#member=cats/0001.png`, each unique.

    `row_fragments` and `member_fragment` make them, so that the result is a valid URI.
    """
    encoded: pa.Array
    """Encoded images, as input for `fmnist_model.images.decode.decode_images`."""
    labels: pa.Int16Array
    """0 to 9, null where unknown."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Reason for quarantine by row, for each image that can't be read. The row's image is null."""
    paths: Mapping[int, str] = field(default_factory=dict)
    """Path by row, for each image that is a file elsewhere, as the container names it. The row's image is null."""


def row_fragments(first_row: int, rows: int) -> pa.StringArray:
    """Return the fragments of images that are identified by their row number."""
    numbers = pa.array(np.arange(first_row, first_row + rows)).cast(pa.string())
    return pc.binary_join_element_wise(pa.scalar("#row="), numbers, "")


def member_fragment(name: bytes) -> str:
    r"""Return the fragment of an image that is identified by its name in the container.

    `%`, `#`, `?` and control characters are percent-encoded. Bytes that aren't UTF-8 are written as `\xNN`, with two
    hexadecimal digits. A backslash that looks like the start of that is written as `\x5c`. Replacing every `%NN` and
    `\xNN` by its byte restores the name.
    """
    if name.isascii() and not _TO_ENCODE.search(name):
        return f"#member={name.decode()}"
    return "#member=" + _TO_ENCODE.sub(_encode, name).decode("utf-8", "backslashreplace")


_TO_ENCODE = re.compile(rb"[%#?\x00-\x1f\x7f]|\xc2[\x80-\x9f]|\\(?=x[0-9a-fA-F]{2})")


def _encode(found: re.Match[bytes]) -> bytes:
    return b"\\x5c" if found[0] == b"\\" else b"".join(b"%%%02X" % byte for byte in found[0])


def even_cuts(rows: int, count: int) -> Iterator[tuple[int, int]]:
    """Divide `rows` into `count` parts of nearly equal size, and yield the first and the end row of each."""
    return pairwise(rows * number // count for number in range(count + 1))
