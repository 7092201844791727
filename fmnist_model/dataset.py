"""Labelled images as arrays: what training and evaluation read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES, IMAGE_SIZE
from fmnist_model.errors import InvalidDataset
from fmnist_model.images.decode import decode_images, encode_png, huggingface_schema


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes."""

    images: NDArray[np.uint8]
    """`[n, 28, 28]`, 0 black to 255 white."""
    labels: NDArray[np.int64]
    """`[n]`, 0 to 9."""

    def __len__(self) -> int:
        return len(self.labels)


_HELD_OUT_SEED = 0
"""Of the one permutation by which all runs hold out."""


def checked(data: LabelledImages, origin: str) -> LabelledImages:
    """Return `data`, its labels as int64, if a network can be trained or evaluated on it.

    Raises:
        InvalidDataset: it is empty, of the wrong shape or type, or a label is NaN, no whole number, or out of range.
    """
    shape = (len(data.labels), IMAGE_SIZE, IMAGE_SIZE)
    if data.images.dtype != np.uint8 or data.images.shape != shape:
        raise InvalidDataset(
            f"{origin}: images are {data.images.dtype} {list(data.images.shape)} instead of uint8 {list(shape)}."
        )
    if not len(data):
        raise InvalidDataset(f"{origin} holds no image.")
    return LabelledImages(data.images, _class_numbers(data.labels, origin))


def _class_numbers(labels: NDArray[Any], origin: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iuf" or labels.ndim != 1:
        raise InvalidDataset(f"{origin}: labels are {labels.dtype} {list(labels.shape)} instead of whole numbers [n].")
    # Of NaN, every comparison is false.
    wrong = np.flatnonzero(~((labels >= 0) & (labels < len(CLASS_NAMES)) & (labels == np.floor(labels))))
    if len(wrong):
        raise InvalidDataset(
            f"{origin}: the label in row {wrong[0]} is {labels[wrong[0]]}; labels are whole numbers from 0 to "
            f"{len(CLASS_NAMES) - 1}."
        )
    return labels.astype(np.int64, copy=False)


def check_classes(data: LabelledImages, origin: str) -> None:
    """Make sure that there is something to learn of every class.

    Raises:
        InvalidDataset: a class has no image.
    """
    counts = np.bincount(data.labels, minlength=len(CLASS_NAMES))
    missing = [f"{number} ({CLASS_NAMES[number]})" for number in np.flatnonzero(counts == 0)]
    if missing:
        raise InvalidDataset(f"{origin} has no image of class {', '.join(missing)}: the network could not learn it.")


def hold_out(data: LabelledImages, images: int) -> tuple[LabelledImages, LabelledImages]:
    """Part a training set into what is trained on and what validates.

    The validation part has each class in the proportion of the whole, rounded by the largest remainder. Which images
    are in it depends on the labels and the number alone, so that the figures of all runs are of the same images.

    Args:
        data: the whole training set.
        images: to hold out; may be 0.

    Returns:
        The training part and the validation part, both in the order of `data`.

    Raises:
        InvalidDataset: the training part would lack a class that `data` has.
        ValueError: the number is negative.
    """
    if images < 0:
        raise ValueError(f"{images} images can't be held out.")
    counts = np.bincount(data.labels, minlength=len(CLASS_NAMES))
    quotas = _proportional(counts, images)
    if emptied := [CLASS_NAMES[number] for number in np.flatnonzero((counts > 0) & (quotas >= counts))]:
        raise InvalidDataset(
            f"Of {len(data):,} images {images:,} can't be held out for validation: none of class {emptied[0]} would be "
            "left to train on. Hold out fewer."
        )
    # RandomState, since NumPy promises that its numbers never change.
    order = np.random.RandomState(_HELD_OUT_SEED).permutation(len(data))
    by_class = order[np.argsort(data.labels[order], kind="stable")]
    firsts = np.cumsum(counts) - counts
    held_out = np.zeros(len(data), np.bool_)
    for first, quota in zip(firsts, quotas, strict=True):
        held_out[by_class[first : first + quota]] = True
    return _chosen(data, ~held_out), _chosen(data, held_out)


def _proportional(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Share `total` out in proportion to `counts`, by the largest remainder; of equal ones, the first is larger."""
    whole, remainders = np.divmod(counts * total, counts.sum())
    whole[np.argsort(-remainders, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _chosen(data: LabelledImages, rows: NDArray[np.bool_]) -> LabelledImages:
    return LabelledImages(data.images[rows], data.labels[rows])


def from_table(tables: Iterable[pa.Table], origin: str) -> LabelledImages:
    """Decode tables with the columns `image` and `label`, one after the other.

    Raises:
        InvalidDataset: a column is missing, an image can't be decoded, a label is null, or `checked` refuses the
            result. Rows are numbered from 0 over all tables.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[Any]] = []
    first = 0
    for table in tables:
        for name in ("image", "label"):
            if name not in table.column_names:
                raise InvalidDataset(f"{origin} has no column '{name}', only {', '.join(table.column_names)}.")
        for batch in table.to_batches():
            decoded = decode_images(batch.column("image"))
            if decoded.rejected:
                row, reason = decoded.rejected[0]
                raise InvalidDataset(f"{origin}: the image in row {first + row} can't be used for training: {reason}.")
            images.append(decoded.pixels)
            labels.append(_label_values(batch.column("label"), first, origin))
            first += len(batch)
    if not images:
        raise InvalidDataset(f"{origin} holds no image.")
    return checked(LabelledImages(np.concatenate(images), np.concatenate(labels)), origin)


def _label_values(column: pa.Array, first: int, origin: str) -> NDArray[Any]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InvalidDataset(f"{origin}: labels are {column.type} instead of whole numbers.")
    if column.null_count:
        row = int(np.flatnonzero(~np.asarray(column.is_valid()))[0])
        raise InvalidDataset(f"{origin}: the label in row {first + row} is null.")
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


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
