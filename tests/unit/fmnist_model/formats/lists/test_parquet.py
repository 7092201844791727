"""A Parquet file with locations differs from one with images, and each of its rows is an entry."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.lists import is_parquet_list
from fmnist_model.images.decode import encode_png
from tests.unit.fmnist_model.formats.lists.read import ORIGIN, entries, firsts, peak_memory, reasons

PNG = encode_png(np.arange(784, dtype=np.uint8).reshape(28, 28))
JPEG = b"\xff\xd8\xff\xe0" + bytes(40)


def parquet_file(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def is_list(data: bytes, **columns: Any) -> bool:
    return is_parquet_list(pa.BufferReader(data), ORIGIN, **columns)


# Lists and images


@pytest.mark.parametrize("name", ["uri", "Path", "FileName", "image", "image_path", "img", "file", "url"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_column_of_locations_makes_a_list(name: str, kind: pa.DataType):
    assert is_list(parquet_file({"id": [1], name: pa.array(["a.png"]).cast(kind)}))


@pytest.mark.parametrize(
    "columns",
    [{"uri": [1]}, {"caption": ["a.png"]}, {"image": [PNG]}, {"image": [PNG], "label": [3]}],
    ids=["numbers", "another name", "images", "images and labels"],
)
def test_file_without_locations_is_no_list(columns: dict[str, Any]):
    assert not is_list(parquet_file(columns))


@pytest.mark.parametrize(
    "hashes",
    [
        pa.array([b"\1" * 32], pa.binary()),
        pa.array([b"\1" * 32], pa.binary(32)),
        pa.array([b"\1" * 64], pa.large_binary()),
        pa.array([b"\1" * 16], pa.binary(16)),
        pa.array([None], pa.binary()),
        pa.array([b""], pa.binary()),
        pa.array([b"\1" * 32], pa.binary()).dictionary_encode(),
        pa.array([bytes(2048)], pa.binary()),
        pa.array([[1, 2, 3]], pa.list_(pa.uint8())),
        pa.array([[0.5, 0.25]], pa.list_(pa.float32())),
    ],
    ids=lambda array: f"{array.type} of {array.nbytes} bytes",
)
@pytest.mark.parametrize("name", ["sha256", "md5", "thumbprint", "embedding", "id"])
def test_hashes_beside_locations_are_not_taken_for_images(name: str, hashes: pa.Array):
    data = parquet_file({name: hashes, "path": ["a.png"]})
    assert is_list(data)
    assert firsts(data, "list.parquet") == [("a.png", None)]


@pytest.mark.parametrize(
    "images",
    [
        pa.array([PNG] * 3, pa.binary()),
        pa.array([PNG] * 1000, pa.large_binary()),
        pa.array([None, JPEG, JPEG], pa.binary()),
        pa.array([b"\0" * 784], pa.binary(784)),
        pa.array([{"bytes": PNG, "path": "a.png"}]),
    ],
    ids=lambda array: f"{len(array)} {array.type}",
)
@pytest.mark.parametrize("name", ["content", "image", "thumb"])
def test_images_beside_locations_make_a_container(name: str, images: pa.Array):
    assert not is_list(parquet_file({"path": ["a.png"] * len(images), name: images}))


def test_column_whose_name_says_so_holds_images():
    assert not is_list(parquet_file({"uri": ["a.png"], "image": [b"\1" * 32]}))


def test_text_that_is_not_marked_as_text_is_a_location():
    data = parquet_file({"path": pa.array([b"gr\xc3\xb6\xc3\x9fe.png"], pa.binary()), "label": [3]})
    assert is_list(data)
    assert firsts(data, "list.parquet") == [("größe.png", 3)]


def test_chosen_column_makes_a_list():
    data = parquet_file({"photo": ["a.png"], "label": [3]})
    assert not is_list(data)
    assert is_list(data, location_column="photo")
    assert firsts(data, "list.parquet", location_column="photo") == [("a.png", 3)]


# Entries


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_rows_are_read_with_their_labels(kind: pa.DataType):
    paths = pa.array(["a.png", "b.png", "a.png"]).cast(kind)
    data = parquet_file({"id": [1, 2, 3], "Path": paths, "label": [1, None, 12]})
    assert firsts(data, "list.parquet") == [("a.png", 1), ("b.png", None), ("a.png", None)]


@pytest.mark.parametrize("name", ["label", "Label", "class", "target", "Category", "y"])
def test_column_of_labels_is_found_by_name(name: str):
    data = parquet_file({name: ["Bag", "3"], "path": ["a.png", "b.png"]})
    assert firsts(data, "list.parquet") == [("a.png", 8), ("b.png", 3)]


def test_labels_with_gaps_are_read():
    data = parquet_file({"path": ["a.png", "b.png", "c.png"], "label": [0.0, None, 3.0]})
    assert firsts(data, "list.parquet") == [("a.png", 0), ("b.png", None), ("c.png", 3)]


def test_row_counts_across_row_groups():
    data = parquet_file({"path": ["a.png"] * 25}, row_group_size=10)
    assert [entry.row for entry in entries(data, "list.parquet")] == list(range(25))


@pytest.mark.parametrize(
    ("bad", "kind"), [(None, "missing"), ("", "missing"), ("a\0b", "damaged"), ("x" * 9000, "damaged")]
)
@pytest.mark.parametrize("dictionary", [True, False])
def test_bad_row_does_not_stop_the_others(bad: str | None, kind: str, dictionary: bool):
    data = parquet_file({"uri": ["a.png", "b.png", bad, "c.png"]}, use_dictionary=dictionary)
    assert reasons(data, "list.parquet") == {2: kind}
    assert len(entries(data, "list.parquet")) == 4


def test_text_that_is_not_utf8_does_not_stop_the_others():
    paths = pa.array([b"a.png", b"gr\xf6\xdfe.png", b"c.png"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, paths.buffers())
    assert [path for path, _ in firsts(parquet_file({"path": text}), "list.parquet")] == ["a.png", "größe.png", "c.png"]


def test_file_without_locations_is_refused_with_its_columns():
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} .*uri \(int64\)"):
        entries(parquet_file({"uri": [1]}), "list.parquet")


def test_missing_label_column_is_refused():
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*'target'"):
        entries(parquet_file({"uri": ["a.png"]}), "list.parquet", label_column="target")


def test_damaged_file_is_refused():
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*Parquet"):
        entries(b"PAR1", "list.parquet")


def test_huge_texts_need_bounded_memory(tmp_path: Path):
    path = tmp_path / "list.parquet"
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(640, np.int32)), pa.array(["x" * (24 << 20)]))
    pq.write_table(pa.table({"path": rows}), path, compression="zstd")
    count, mebibytes = peak_memory(path)
    assert count == 640
    assert mebibytes < 300
