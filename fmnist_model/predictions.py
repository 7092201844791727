"""Arrange predictions and quarantined images as Arrow rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.images import TRANSFORM_VERSION


@dataclass(frozen=True)
class Predictions:
    """Predicted classes and probabilities of `n` images."""

    classes: NDArray[np.int8]
    """`[n]`, 0 to 9."""
    confidence: NDArray[np.float32]
    """`[n]`, probability of the predicted class."""
    probabilities: NDArray[np.float32]
    """`[n, 10]`, softmax at the classifier's temperature, in class order."""


def prediction_schema() -> pa.Schema:
    """Return the Arrow schema of prediction rows. Each field's metadata describes the column."""

    def field(name: str, kind: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
        return pa.field(name, kind, nullable=nullable, metadata={"description": description})

    return pa.schema(
        [
            field(
                "image",
                pa.string(),
                "URI of the image. In a file with many images, it ends with #row=N, counted from 0, or #member=NAME",
            ),
            field("predicted_class", pa.int16(), "number of the predicted class, from 0"),
            field("predicted_label", pa.dictionary(pa.int8(), pa.string()), "name of the predicted class"),
            field("confidence", pa.float32(), "probability of the predicted class"),
            field(
                "probabilities",
                pa.list_(pa.float32()),
                "probability of each class, in class order: softmax at the temperature of the batch's books",
            ),
            field("label", pa.int16(), "true class, if the input has one", nullable=True),
            field("file_version", pa.int32(), "number of the batch that planned this version of the file"),
            field(
                "model_version", pa.dictionary(pa.int32(), pa.string()), "number of the model version that predicted"
            ),
            field("transform", pa.int16(), "version of the transform that decoded the image"),
        ]
    )


def prediction_batch(
    images: Sequence[str] | pa.Array,
    predictions: Predictions,
    labels: pa.Array,
    *,
    file_version: int,
    model_version: str,
    transform: int = TRANSFORM_VERSION,
) -> pa.RecordBatch:
    """Arrange predictions as rows of `prediction_schema`.

    Args:
        images: URIs of `n` images.
        predictions: predictions for these images, in the same order.
        labels: integers `[n]`, true classes, null where unknown.
        file_version: number of the batch that planned this version of the files.
        model_version: number of the model version, repeated in every row.
        transform: version of the transform that decoded the images.
    """
    n, width = predictions.probabilities.shape
    probabilities = pa.array(predictions.probabilities.reshape(-1))
    return pa.record_batch(
        [
            images if isinstance(images, pa.Array) else pa.array(images, pa.string()),
            pa.array(predictions.classes, pa.int16()),
            pa.DictionaryArray.from_arrays(pa.array(predictions.classes), pa.array(CLASS_NAMES)),
            pa.array(predictions.confidence),
            pa.ListArray.from_arrays(pa.array(np.arange(0, (n + 1) * width, width, dtype=np.int32)), probabilities),
            labels.cast(pa.int16()),
            pa.array(np.full(n, file_version, np.int32)),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([model_version])),
            pa.array(np.full(n, transform, np.int16)),
        ],
        schema=prediction_schema(),
    )


def quarantine_schema() -> pa.Schema:
    """Return the Arrow schema of quarantined images, which could not be classified."""

    def field(name: str, kind: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
        return pa.field(name, kind, nullable=nullable, metadata={"description": description})

    return pa.schema(
        [
            field("image", pa.string(), "URI of the image"),
            field("reason_kind", pa.dictionary(pa.int8(), pa.string()), "kind of the reason, such as damaged"),
            field("reason", pa.string(), "why the image could not be classified"),
            field("retryable", pa.bool_(), "whether the cause lies with the image's place, which may change"),
            field("label", pa.int16(), "true class, if the input has one", nullable=True),
            field("file_version", pa.int32(), "number of the batch that planned this version of the file"),
            field("model_version", pa.dictionary(pa.int32(), pa.string()), "number of the batch's model version"),
            field("transform", pa.int16(), "version of the transform that could not decode the image"),
        ]
    )


@dataclass(frozen=True)
class Rejection:
    """Why an image could not be classified."""

    kind: str
    reason: str
    retryable: bool
    """Whether the cause lies with the image's place rather than its bytes."""


def quarantine_batch(
    images: pa.Array,
    rejections: Mapping[int, Rejection],
    labels: pa.Array,
    *,
    file_version: int,
    model_version: str,
    transform: int = TRANSFORM_VERSION,
) -> pa.RecordBatch:
    """Arrange images that could not be classified as rows of `quarantine_schema`.

    Args:
        images: URIs of `n` images.
        rejections: the rejection of each quarantined image, by its index in `images`.
        labels: integers `[n]`, true classes, null where unknown.
        file_version: number of the batch that planned this version of the files.
        model_version: number of the model version that could not classify them.
        transform: version of the transform that could not decode them.
    """
    rows, why = pa.array(list(rejections), pa.int64()), list(rejections.values())
    zeros = pa.array(np.zeros(len(why), np.int32))
    return pa.record_batch(
        [
            images.take(rows),
            pa.array([rejection.kind for rejection in why], pa.string())
            .dictionary_encode()
            .cast(pa.dictionary(pa.int8(), pa.string())),
            pa.array([rejection.reason for rejection in why], pa.string()),
            pa.array([rejection.retryable for rejection in why], pa.bool_()),
            labels.take(rows).cast(pa.int16()),
            pa.array(np.full(len(why), file_version, np.int32)),
            pa.DictionaryArray.from_arrays(zeros, pa.array([model_version])),
            pa.array(np.full(len(why), transform, np.int16)),
        ],
        schema=quarantine_schema(),
    )
