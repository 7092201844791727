"""Read raw pixels from an Arrow column."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fmnist_model.classes import IMAGE_SIZE
from fmnist_model.images.decoded import MISSING, DecodedImages

_PIXELS: Final = IMAGE_SIZE**2
"""Number of pixels per image."""


def take_raw_pixels(column: pa.Array) -> DecodedImages:
    """Return a view of the pixels in the column. They are copied only if rows between them are rejected."""
    raw = _raw_values(column)
    reasons = {row: f"damaged: {raw.nulls[row]} of its pixels are null" for row in np.flatnonzero(raw.nulls).tolist()}
    for row in np.flatnonzero(raw.lengths != _PIXELS).tolist():
        reasons[row] = f"not an image: {raw.lengths[row]} pixels instead of {_PIXELS} ({IMAGE_SIZE} x {IMAGE_SIZE})"
    reasons |= dict.fromkeys(np.flatnonzero(~np.asarray(column.is_valid())).tolist(), MISSING)
    rows = np.delete(np.arange(len(column)), list(reasons))
    starts = raw.starts[rows]
    if not len(rows):
        pixels = np.empty((0, _PIXELS), np.uint8)
    elif (np.diff(starts) == _PIXELS).all():
        pixels = raw.values[starts[0] : starts[-1] + _PIXELS]
    else:
        pixels = sliding_window_view(raw.values, _PIXELS)[starts]
    return DecodedImages(pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE), rows, sorted(reasons.items()))


@dataclass(frozen=True)
class _RawValues:
    """A column of raw pixels as flat arrays."""

    values: NDArray[np.uint8]
    """Pixels of all rows, with nulls as 0. Rows outside the column's slice may be included."""
    starts: NDArray[np.int64]
    """`[n]`, index in `values` of each row's first pixel."""
    lengths: NDArray[np.int64]
    """`[n]`, number of pixels in each row."""
    nulls: NDArray[np.int64]
    """`[n]`, number of null pixels in each row."""


def _raw_values(column: pa.Array) -> _RawValues:
    offsets = (column.offset + np.arange(len(column) + 1)) * _PIXELS
    nulls = np.zeros(len(column), np.int64)
    if pa.types.is_fixed_size_binary(column.type):
        return _RawValues(np.frombuffer(column.buffers()[1] or b"", np.uint8), offsets[:-1], np.diff(offsets), nulls)
    values = column.values  # values of the whole array, of which the column may be a slice
    if not pa.types.is_fixed_size_list(column.type):
        offsets = column.offsets.to_numpy().astype(np.int64)
    if values.null_count:
        nulls = np.diff(np.concatenate([[0], np.cumsum(values.is_null())])[offsets])
        values = values.fill_null(0)
    return _RawValues(np.asarray(values), offsets[:-1], np.diff(offsets), nulls)
