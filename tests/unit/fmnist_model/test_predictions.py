"""Prediction rows have the documented columns and the values from the network."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.classifier import Classifier
from fmnist_model.images import TRANSFORM_VERSION
from fmnist_model.network import NeuralNetwork
from fmnist_model.predictions import (
    Predictions,
    Rejection,
    prediction_batch,
    prediction_schema,
    quarantine_batch,
    quarantine_schema,
)

LABELS = pa.array([9, None, 0, 3], pa.int8())
VERSIONS: Any = {"file_version": 7, "model_version": "12"}
URIS = [f"file:///data/test.parquet#row={row}" for row in range(4)]


@pytest.fixture(scope="module")
def network() -> NeuralNetwork:
    torch.manual_seed(0)
    return NeuralNetwork()


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictions(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> Predictions:
    return Classifier(network, torch.device("cpu")).classify(pixels)


@pytest.fixture(scope="module")
def batch(predictions: Predictions) -> pa.RecordBatch:
    return prediction_batch(URIS, predictions, LABELS, **VERSIONS)


# The classifier


def test_probabilities_are_the_softmax_of_the_logits(
    network: NeuralNetwork, pixels: NDArray[np.uint8], predictions: Predictions
):
    expected = network(torch.from_numpy(pixels) / 255).softmax(1).detach().numpy()
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-6)


def test_predicted_class_is_the_most_probable_one(predictions: Predictions):
    np.testing.assert_array_equal(predictions.classes, predictions.probabilities.argmax(axis=1))


def test_confidence_is_the_probability_of_the_predicted_class(predictions: Predictions):
    np.testing.assert_array_equal(predictions.confidence, predictions.probabilities.max(axis=1))


def test_no_images_give_no_predictions(network: NeuralNetwork):
    predictions = Classifier(network, torch.device("cpu")).classify(np.empty((0, 28, 28), np.uint8))
    assert predictions.probabilities.shape == (0, 10)


def test_images_are_classified_independently_of_the_batch(network: NeuralNetwork):
    many = np.random.default_rng(1).integers(0, 256, (4_099, 28, 28), dtype=np.uint8)
    classifier = Classifier(network, torch.device("cpu"))
    together, last = classifier.classify(many), classifier.classify(many[-1:])
    assert len(together.classes) == 4_099
    np.testing.assert_allclose(together.probabilities[-1:], last.probabilities, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_read_only_pixels_cause_no_warning(network: NeuralNetwork, pixels: NDArray[np.uint8], predictions: Predictions):
    frozen = np.frombuffer(pixels.tobytes(), np.uint8).reshape(-1, 28, 28)
    classified = Classifier(network, torch.device("cpu")).classify(frozen)
    np.testing.assert_array_equal(classified.classes, predictions.classes)


def test_strided_pixels_are_classified_in_order(
    network: NeuralNetwork, pixels: NDArray[np.uint8], predictions: Predictions
):
    classified = Classifier(network, torch.device("cpu")).classify(pixels[::-1])
    np.testing.assert_array_equal(classified.classes, predictions.classes[::-1])


# Rows


def test_columns_are_the_documented_ones():
    kinds = {field.name: field.type for field in prediction_schema()}
    assert kinds == {
        "image": pa.string(),
        "predicted_class": pa.int16(),
        "predicted_label": pa.dictionary(pa.int8(), pa.string()),
        "confidence": pa.float32(),
        "probabilities": pa.list_(pa.float32()),
        "label": pa.int16(),
        "file_version": pa.int32(),
        "model_version": pa.dictionary(pa.int32(), pa.string()),
        "transform": pa.int16(),
    }


def test_only_the_label_is_nullable():
    assert [field.name for field in prediction_schema() if field.nullable] == ["label"]


@pytest.mark.parametrize("schema", [prediction_schema(), quarantine_schema()], ids=["predictions", "quarantine"])
def test_every_column_is_described(schema: pa.Schema):
    assert all(field.metadata and field.metadata[b"description"] for field in schema)


def test_rows_have_the_schema(batch: pa.RecordBatch):
    assert batch.schema.equals(prediction_schema(), check_metadata=True)


def test_rows_are_valid_arrow(batch: pa.RecordBatch):
    batch.validate(full=True)


def test_rows_keep_the_order_of_the_images(batch: pa.RecordBatch):
    assert batch["image"].to_pylist() == URIS


def test_uris_can_be_an_arrow_array(predictions: Predictions, batch: pa.RecordBatch):
    assert prediction_batch(pa.array(URIS), predictions, LABELS, **VERSIONS).equals(batch)


def test_predicted_label_is_the_name_of_the_predicted_class(batch: pa.RecordBatch):
    names = [CLASS_NAMES[number] for number in batch["predicted_class"].to_pylist()]
    assert batch["predicted_label"].to_pylist() == names


def test_every_class_gets_its_name():
    probabilities = np.eye(10, dtype=np.float32)
    every = Predictions(np.arange(10, dtype=np.int8), np.ones(10, np.float32), probabilities)
    rows = prediction_batch([str(number) for number in range(10)], every, pa.nulls(10, pa.int8()), **VERSIONS)
    assert tuple(rows["predicted_label"].to_pylist()) == CLASS_NAMES


def test_probabilities_are_in_class_order(predictions: Predictions, batch: pa.RecordBatch):
    np.testing.assert_array_equal(np.array(batch["probabilities"].to_pylist(), np.float32), predictions.probabilities)


def test_probabilities_of_an_image_sum_to_one(batch: pa.RecordBatch):
    np.testing.assert_allclose(np.array(batch["probabilities"].to_pylist()).sum(axis=1), 1, rtol=1e-6)


def test_unknown_label_is_null(batch: pa.RecordBatch):
    assert batch["label"].to_pylist() == [9, None, 0, 3]


def test_every_row_has_the_versions_of_model_and_file(batch: pa.RecordBatch):
    assert batch["model_version"].to_pylist() == ["12"] * 4
    assert batch["file_version"].to_pylist() == [7] * 4


def test_every_row_has_the_version_of_the_transform(predictions: Predictions, batch: pa.RecordBatch):
    assert batch["transform"].to_pylist() == [TRANSFORM_VERSION] * 4
    older = prediction_batch(URIS, predictions, LABELS, transform=1, **VERSIONS)
    assert older["transform"].to_pylist() == [1] * 4


def test_quarantined_images_keep_their_reasons_and_labels():
    rejections = {
        3: Rejection("vanished", "vanished: no such file", True),
        0: Rejection("damaged", "damaged: no pixels", False),
    }
    rows = quarantine_batch(pa.array(URIS), rejections, LABELS, **VERSIONS)
    rows.validate(full=True)
    assert rows.schema.equals(quarantine_schema(), check_metadata=True)
    assert rows.to_pylist() == [
        {
            "image": URIS[row],
            "reason_kind": rejections[row].kind,
            "reason": rejections[row].reason,
            "retryable": rejections[row].retryable,
            "label": label,
            "file_version": 7,
            "model_version": "12",
            "transform": TRANSFORM_VERSION,
        }
        for row, label in ((3, 3), (0, 9))
    ]


def test_batch_without_images_has_the_schema():
    none = Predictions(np.empty(0, np.int8), np.empty(0, np.float32), np.empty((0, 10), np.float32))
    rows = prediction_batch([], none, pa.nulls(0, pa.int8()), **VERSIONS)
    assert (rows.num_rows, rows.schema) == (0, prediction_schema())


def test_parquet_round_trip_is_lossless(batch: pa.RecordBatch):
    buffer = io.BytesIO()
    pq.write_table(pa.table(batch), buffer)
    assert pq.read_table(buffer).to_pylist() == batch.to_pylist()
