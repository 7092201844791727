"""What every kind of container file gives: pieces when work is planned, batches of images when it is done."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCH_BYTES = 64 * 2**20
"""A batch ends early when it holds that much: bounds a worker's memory where images are large."""


@dataclass(frozen=True)
class ContainerPiece:
    """Consecutive images of a container that are read together."""

    first_row: int
    """Number of its first image in the container, from 0."""
    rows: int
    """Images."""
    offset: int
    """Where reading begins, for the kind of container that made the piece; it means nothing to others."""
    size: int
    """Bytes to be read for it, approximately: weighs the work."""


@dataclass(frozen=True)
class ImageBatch:
    """Images as they lie in the container, in its order: three columns of the same length."""

    fragments: pa.StringArray
    """What follows the container's URI in an image's: `#row=17` or `#member=cats/0001.png`. Distinct in a container."""
    encoded: pa.Array
    """As `fmnist_model.images.decode.decode_images` takes them."""
    labels: pa.Int8Array
    """0 to 9, null where unknown."""


def row_fragments(first_row: int, rows: int) -> pa.StringArray:
    """Fragments of images that have no name but their number."""
    numbers = pa.array(np.arange(first_row, first_row + rows)).cast(pa.string())
    return pc.binary_join_element_wise(pa.scalar("#row="), numbers, "")


def even_cuts(rows: int, count: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each of `count` parts of as nearly as possible the same number of rows."""
    return pairwise(rows * number // count for number in range(count + 1))
