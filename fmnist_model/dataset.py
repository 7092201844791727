"""Labelled images as arrays: what training and evaluation read."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES, IMAGE_SIZE
from fmnist_model.errors import InvalidDataset
from fmnist_model.images import decode_images, encode_png, huggingface_schema


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes."""

    images: NDArray[np.uint8]
    """`[n, 28, 28]`, 0 black to 255 white."""
    labels: NDArray[np.int64]
    """`[n]`, 0 to 9."""

    def __len__(self) -> int:
        return len(self.labels)


def checked(data: LabelledImages, origin: str) -> LabelledImages:
    """Return `data` if a network can be trained or evaluated on it.

    Raises:
        InvalidDataset: it is empty, of the wrong shape or type, or has labels out of range.
    """
    shape = (len(data.labels), IMAGE_SIZE, IMAGE_SIZE)
    if data.images.dtype != np.uint8 or data.images.shape != shape:
        raise InvalidDataset(
            f"{origin}: images are {data.images.dtype} {list(data.images.shape)} instead of uint8 {list(shape)}."
        )
    if not len(data):
        raise InvalidDataset(f"{origin} holds no image.")
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= len(CLASS_NAMES):
        raise InvalidDataset(f"{origin}: labels run from {low} to {high}; expected 0 to {len(CLASS_NAMES) - 1}.")
    return data


def from_table(tables: Iterable[pa.Table], origin: str) -> LabelledImages:
    """Decode tables with the columns `image` and `label`, one after the other.

    Raises:
        InvalidDataset: a column is missing, an image can't be decoded, or `checked` refuses the result.
    """
    images, labels = [], []
    for table in tables:
        for name in ("image", "label"):
            if name not in table.column_names:
                raise InvalidDataset(f"{origin} has no column '{name}', only {', '.join(table.column_names)}.")
        for batch in table.to_batches():
            decoded = decode_images(batch.column("image"))
            if decoded.rejected:
                row, reason = decoded.rejected[0]
                raise InvalidDataset(f"{origin}: the image in row {row} can't be used for training: {reason}.")
            images.append(decoded.pixels)
            labels.append(batch.column("label").to_numpy(zero_copy_only=False).astype(np.int64))
    if not images:
        raise InvalidDataset(f"{origin} holds no image.")
    return checked(LabelledImages(np.concatenate(images), np.concatenate(labels)), origin)


def to_table(images: NDArray[np.uint8], labels: NDArray[np.uint8], first: int, split: str) -> pa.Table:
    """Encode images as PNG in the Hugging Face image layout.

    Args:
        images: `[n, 28, 28]`.
        labels: `[n]`.
        first: number of the first image in its split; paths are `<split>/00042.png`.
        split: `train` or `test`.
    """
    rows = [
        {"bytes": encode_png(image), "path": f"{split}/{number:05d}.png"} for number, image in enumerate(images, first)
    ]
    return pa.table({"image": rows, "label": labels.astype(np.int64)}, schema=huggingface_schema())
