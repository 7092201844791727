"""Every spelling of a label gives its class, and everything else gives null."""

import json
import logging
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.formats.labels import (
    class_names_of,
    find_label_column,
    holds_labels,
    is_unknown_label,
    parse_label,
    parse_labels,
)

SPELLINGS: list[tuple[object, int | None]] = [
    (3, 3),
    (3.0, 3),
    (Decimal("3.00"), 3),
    ("3", 3),
    (" 3 ", 3),
    ("3.0", 3),
    ("03", 3),
    ("+3", 3),
    (b"3\n", 3),
    (b"Dress", 3),
    ("dress", 3),
    ("DRESS\r\n", 3),
    ("T-shirt/top", 0),
    ("T - shirt / top", 0),
    ("t_shirt_top", 0),
    ("tshirt", 0),
    ("ankle boot", 9),
    ("Ankle-Boot", 9),
    ("ankle_boot", 9),
    ("AnkleBoot", 9),
    ("shirt", 6),
    (None, None),
    (float("nan"), None),
    ("NaN", None),
    ("", None),
    (-1, None),
    (True, None),
    (3.5, None),
    (10, None),
    (-3, None),
    (float("inf"), None),
    (2**70, None),
    ("9" * 500, None),
    ("1e0", None),
    ("³", None),
    ("cat", None),
    (b"\xff\xfe", None),
    ([3], None),
    ({"label": 3}, None),
]


@pytest.mark.parametrize(("value", "label"), SPELLINGS, ids=repr)
def test_every_spelling_of_a_label_gives_its_class(value: object, label: int | None):
    assert parse_label(value) == label


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_every_class_name_gives_its_class_in_any_case(name: str):
    assert {parse_label(name), parse_label(name.upper()), parse_label(name.lower())} == {CLASS_NAMES.index(name)}


@pytest.mark.parametrize("value", [10, 3.5, "cat", True, b"\xff"])
def test_value_that_names_no_class_is_unknown(value: object):
    assert is_unknown_label(value)


@pytest.mark.parametrize("value", [None, float("nan"), "", "nan", "None", -1, "-1", 3, "Bag"])
def test_missing_label_and_class_are_not_unknown(value: object):
    assert not is_unknown_label(value)


NUMBERS = [
    pa.int8(),
    pa.uint8(),
    pa.int64(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.decimal128(21, 2),
    pa.decimal256(21, 2),
]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]


def labels_of(column: pa.Array, **options: Any) -> list[int | None]:
    labels = parse_labels(column, **options)
    assert labels.type == pa.int16()
    assert holds_labels(column.type)
    return labels.to_pylist()


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_numbers_of_every_type_are_labels(kind: pa.DataType):
    assert labels_of(pa.array([0, 9, None, 10, 100], pa.int64()).cast(kind)) == [0, 9, None, None, None]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_texts_of_every_type_are_labels(kind: pa.DataType):
    column = pa.array(["3", " ankle boot ", None, "cat", "1.0"]).cast(pa.large_binary()).cast(kind)
    assert labels_of(column) == [3, 9, None, None, 1]


def test_bytes_of_fixed_size_are_labels():
    assert labels_of(pa.array([b"Bag\0\0", b"Dress", None], pa.binary(5))) == [8, 3, None]


@pytest.mark.parametrize("values", [[1.0, None, 3.0], ["1", None, "dress"], [1, None, 3]])
def test_dictionary_of_labels_is_decoded(values: list[Any]):
    assert labels_of(pa.array(values).dictionary_encode()) == [1, None, 3]


def test_slice_of_a_column_gives_its_own_labels():
    assert labels_of(pa.array([0, 1, 2, 3, 4]).slice(2, 2)) == [2, 3]


def test_column_of_nulls_has_no_labels():
    assert labels_of(pa.nulls(3)) == [None] * 3


def test_labels_with_gaps_as_pandas_writes_them_are_read():
    assert labels_of(pa.array([0.0, 1.0, float("nan"), 3.0], pa.float64())) == [0, 1, None, 3]


@pytest.mark.parametrize("kind", [pa.bool_(), pa.date32(), pa.timestamp("s"), pa.list_(pa.int8()), pa.struct([])])
def test_other_types_hold_no_labels(kind: pa.DataType):
    assert not holds_labels(kind)
    assert find_label_column(pa.schema([("label", kind)]), None, "x") is None


@pytest.mark.parametrize(
    ("columns", "found"),
    [(["Label"], "Label"), (["LABEL", "label"], "label"), (["class", "Labels"], "Labels"), (["target"], None)],
)
def test_label_column_is_found_by_its_name_in_any_case(columns: list[str], found: str | None):
    assert find_label_column(pa.schema([(name, pa.int8()) for name in columns]), None, "x") == found


def huggingface_schema(names: object) -> pa.Schema:
    info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    return pa.schema([("label", pa.int64())], metadata={"huggingface": json.dumps(info)})


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (list(reversed(CLASS_NAMES)), [9, 8, None, 0]),
        ([name.lower().replace(" ", "_") for name in CLASS_NAMES], [0, 1, None, 9]),
        ([str(number) for number in range(10)], [0, 1, None, 9]),
        (["cat", "bag"], [None, 8, None, None]),
    ],
)
def test_numbers_stand_for_the_class_names_in_the_metadata(names: list[str], labels: list[int | None]):
    found = class_names_of(huggingface_schema(names), "label")
    assert labels_of(pa.array([0, 1, None, 9]), names=found) == labels


@pytest.mark.parametrize("metadata", [None, {"huggingface": "{"}, {"huggingface": "[]"}, {"huggingface": "[" * 9999}])
def test_metadata_without_class_names_gives_none(metadata: dict[str, str] | None):
    assert class_names_of(pa.schema([("label", pa.int64())], metadata=metadata), "label") is None


@pytest.mark.parametrize("names", [None, [], "Bag", {"0": "Bag"}])
def test_class_names_of_another_shape_give_none(names: object):
    assert class_names_of(huggingface_schema(names), "label") is None


def test_unknown_labels_are_logged_once_per_file(caplog: pytest.LogCaptureFixture):
    first, second = (f"s3://bucket/{uuid4()}.parquet" for _ in range(2))
    with caplog.at_level(logging.WARNING):
        for origin in (first, first, second):
            parse_labels(pa.array(["cat", None, "bag"]), origin=origin)
    assert [first in caplog.text, second in caplog.text, len(caplog.records)] == [True, True, 2]
    assert "'cat'" in caplog.text


def test_missing_labels_are_not_logged(caplog: pytest.LogCaptureFixture):
    parse_labels(pa.array([float("nan"), None, 3.0]), origin=f"s3://bucket/{uuid4()}")
    assert caplog.records == []
