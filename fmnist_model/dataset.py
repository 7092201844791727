"""Hold labelled images as arrays for training and evaluation."""

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
    """Images and their classes."""

    images: NDArray[np.uint8]
    """`[n, 28, 28]`, 0 black to 255 white."""
    labels: NDArray[np.int64]
    """`[n]`, 0 to 9."""

    def __len__(self) -> int:
        return len(self.labels)


_HELD_OUT_SEED = 0
"""Seed of the permutation that chooses the validation images in every run."""


def validate(data: LabelledImages, origin: str) -> LabelledImages:
    """Check that a network can be trained or evaluated on the images.

    Args:
        data: images `[n, 28, 28]` and labels `[n]` of any numeric type.
        origin: name of the split for error messages.

    Returns:
        `data` with its labels as int64.

    Raises:
        InvalidDataset: `data` is empty, an array has the wrong shape or type, or a label is NaN, not a whole number,
            or out of range.
    """
    shape = (len(data.labels), IMAGE_SIZE, IMAGE_SIZE)
    if data.images.dtype != np.uint8 or data.images.shape != shape:
        raise InvalidDataset(
            f"{origin} has images of type {data.images.dtype} and shape {list(data.images.shape)}. Expected uint8 and "
            f"{list(shape)}."
        )
    if not len(data):
        raise InvalidDataset(f"{origin} has no images.")
    return LabelledImages(data.images, _class_numbers(data.labels, origin))


def _class_numbers(labels: NDArray[Any], origin: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iuf" or labels.ndim != 1:
        raise InvalidDataset(
            f"{origin} has labels of type {labels.dtype} and shape {list(labels.shape)}. Expected whole numbers and "
            "[n]."
        )
    # Every comparison with NaN is false, so the condition lists what is right and negates it.
    wrong = np.flatnonzero(~((labels >= 0) & (labels < len(CLASS_NAMES)) & (labels == np.floor(labels))))
    if len(wrong):
        raise InvalidDataset(
            f"{origin}: the label in row {wrong[0]} is {labels[wrong[0]]}. Labels must be whole numbers from 0 to "
            f"{len(CLASS_NAMES) - 1}."
        )
    return labels.astype(np.int64, copy=False)


def check_classes(data: LabelledImages, origin: str) -> None:
    """Check that every class has at least one image.

    Raises:
        InvalidDataset: a class has no image.
    """
    counts = np.bincount(data.labels, minlength=len(CLASS_NAMES))
    missing = [f"{number} ({CLASS_NAMES[number]})" for number in np.flatnonzero(counts == 0)]
    if missing:
        raise InvalidDataset(f"{origin} has no image of class {', '.join(missing)}. Add images of every class.")


def hold_out(data: LabelledImages, count: int) -> tuple[LabelledImages, LabelledImages]:
    """Split a training set into training images and validation images.

    The validation images keep the class proportions of the whole set, rounded by the largest-remainder method. Which
    images are held out depends only on the labels and the count, so metrics of different runs are comparable.

    Args:
        data: the whole training set.
        count: number of images to hold out, 0 or more.

    Returns:
        The training images and the validation images, both in the order of `data`.

    Raises:
        InvalidDataset: no training image would be left of a class that `data` has.
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"Can't hold out {count} images. The number must be 0 or more.")
    class_counts = np.bincount(data.labels, minlength=len(CLASS_NAMES))
    quotas = _proportional(class_counts, count)
    if emptied := [CLASS_NAMES[number] for number in np.flatnonzero((class_counts > 0) & (quotas >= class_counts))]:
        raise InvalidDataset(
            f"Can't hold out {count:,} of {len(data):,} images for validation. No image of class {emptied[0]} would be "
            "left to train on. Hold out fewer."
        )
    # RandomState, because NumPy guarantees that its sequence never changes.
    order = np.random.RandomState(_HELD_OUT_SEED).permutation(len(data))
    by_class = order[np.argsort(data.labels[order], kind="stable")]
    firsts = np.cumsum(class_counts) - class_counts
    held_out = np.zeros(len(data), np.bool_)
    for first, quota in zip(firsts, quotas, strict=True):
        held_out[by_class[first : first + quota]] = True
    return _select(data, ~held_out), _select(data, held_out)


def _proportional(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Divide `total` in proportion to `counts` by the largest-remainder method. Ties go to the lower class number."""
    whole, remainders = np.divmod(counts * total, counts.sum())
    whole[np.argsort(-remainders, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _select(data: LabelledImages, rows: NDArray[np.bool_]) -> LabelledImages:
    return LabelledImages(data.images[rows], data.labels[rows])


def from_table(tables: Iterable[pa.Table], origin: str) -> LabelledImages:
    """Decode and concatenate tables with the columns `image` and `label`.

    Args:
        tables: parts of one split, in order.
        origin: name of the split for error messages, which number rows from 0 across all tables.

    Raises:
        InvalidDataset: a column is missing, an image can't be decoded, a label is null, or `validate` refuses the
            result.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[Any]] = []
    first = 0
    for table in tables:
        for name in ("image", "label"):
            if name not in table.column_names:
                raise InvalidDataset(
                    f"{origin} has no column '{name}'. Its columns are: {', '.join(table.column_names)}."
                )
        for batch in table.to_batches():
            decoded = decode_images(batch.column("image"))
            if decoded.rejected:
                row, reason = decoded.rejected[0]
                raise InvalidDataset(f"{origin} has an unusable image in row {first + row}: {reason}.")
            images.append(decoded.pixels)
            labels.append(_label_values(batch.column("label"), first, origin))
            first += len(batch)
    if not images:
        raise InvalidDataset(f"{origin} has no images.")
    return validate(LabelledImages(np.concatenate(images), np.concatenate(labels)), origin)


def _label_values(column: pa.Array, first: int, origin: str) -> NDArray[Any]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InvalidDataset(f"{origin} has labels of type {column.type}. Expected whole numbers.")
    if column.null_count:
        row = int(np.flatnonzero(~np.asarray(column.is_valid()))[0])
        raise InvalidDataset(f"{origin} has a null label in row {first + row}.")
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def to_table(images: NDArray[np.uint8], labels: NDArray[np.uint8], first: int, split: str) -> pa.Table:
    """Encode images as PNG in Hugging Face's image dataset layout.

    Args:
        images: uint8 `[n, 28, 28]`.
        labels: uint8 `[n]`.
        first: number of the first image in its split. Image 42 gets the path `<split>/00042.png`.
        split: `train` or `test`.
    """
    rows = [
        {"bytes": encode_png(image), "path": f"{split}/{number:05d}.png"} for number, image in enumerate(images, first)
    ]
    return pa.table({"image": rows, "label": labels.astype(np.int64)}, schema=huggingface_schema())
