"""Arrange predictions and quarantined images as Arrow rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES


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
            field("predicted_class", pa.int8(), "0 to 9"),
            field("predicted_label", pa.dictionary(pa.int8(), pa.string()), "name of the predicted class"),
            field("confidence", pa.float32(), "probability of the predicted class"),
            field(
                "probabilities",
                pa.list_(pa.float32(), len(CLASS_NAMES)),
                "probability of each class, in class order: softmax at the temperature in the file's metadata",
            ),
            field("label", pa.int8(), "true class, if the input has one", nullable=True),
            field(
                "model_version", pa.dictionary(pa.int32(), pa.string()), "number of the model version that predicted"
            ),
        ]
    )


def prediction_batch(
    images: Sequence[str] | pa.Array, predictions: Predictions, labels: pa.Array, model_version: str
) -> pa.RecordBatch:
    """Arrange predictions as rows of `prediction_schema`.

    Args:
        images: URIs of `n` images.
        predictions: predictions for these images, in the same order.
        labels: int8 `[n]`, true classes, null where unknown.
        model_version: number of the model version, repeated in every row.
    """
    n = len(predictions.classes)
    probabilities = pa.array(predictions.probabilities.reshape(-1))
    return pa.record_batch(
        [
            images if isinstance(images, pa.Array) else pa.array(images, pa.string()),
            pa.array(predictions.classes),
            pa.DictionaryArray.from_arrays(pa.array(predictions.classes), pa.array(CLASS_NAMES)),
            pa.array(predictions.confidence),
            pa.FixedSizeListArray.from_arrays(probabilities, len(CLASS_NAMES)),
            labels,
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([model_version])),
        ],
        schema=prediction_schema(),
    )


def quarantine_schema() -> pa.Schema:
    """Return the Arrow schema of quarantined images, which could not be classified."""
    return pa.schema(
        [
            pa.field("image", pa.string(), nullable=False, metadata={"description": "URI of the image"}),
            pa.field("reason", pa.string(), nullable=False, metadata={"description": "why it could not be classified"}),
            pa.field("label", pa.int8(), metadata={"description": "true class, if the input has one"}),
        ]
    )


def quarantine_batch(images: pa.Array, reasons: Mapping[int, str], labels: pa.Array) -> pa.RecordBatch:
    """Arrange images that could not be classified as rows of `quarantine_schema`.

    Args:
        images: URIs of `n` images.
        reasons: reason for each quarantined image, by its index in `images`.
        labels: int8 `[n]`, true classes, null where unknown.
    """
    rows = pa.array(list(reasons), pa.int64())
    columns = [images.take(rows), pa.array(reasons.values(), pa.string()), labels.take(rows)]
    return pa.record_batch(columns, schema=quarantine_schema())
