"""Every row of a Parquet file is read exactly once, for any columns, row groups and sizes."""

import errno
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.errors import InvalidDataset, NoImages
from fmnist_model.formats import parquet, parquet_pages
from fmnist_model.formats.interface import ContainerPiece, ImageBatch
from fmnist_model.formats.parquet import MAX_CUTS, pieces, read
from fmnist_model.formats.parquet_columns import Columns
from fmnist_model.images.decode import holds_images

ORIGIN = "s3://bucket/images.parquet"
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Values = list[bytes | None]


def make_file(table: pa.Table, row_group_size: int | None = None, **options: Any) -> pa.NativeFile:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size, **options)
    return pa.BufferReader(buffer.getvalue())


def images_of(values: Values, kind: pa.DataType | None = None) -> pa.Array:
    kind = kind or STRUCT
    if pa.types.is_struct(kind):
        return pa.array([None if value is None else {"bytes": value, "path": "x.png"} for value in values], kind)
    return pa.array(values, kind)


def cut(file: pa.NativeFile, rows: int = 1000, size: int = 2**30, **columns: str) -> list[ContainerPiece]:
    return list(pieces(file, ORIGIN, target_rows=rows, target_bytes=size, **columns))


def read_batches(
    file: pa.NativeFile, rows: int = 1000, size: int = 2**30, batch_rows: int = 100, **columns: str
) -> list[ImageBatch]:
    """Read all pieces, and check their row numbers and counts."""
    found: list[ImageBatch] = []
    row = 0
    for piece in cut(file, rows, size, **columns):
        assert piece.first_row == row
        for batch in read(file, ORIGIN, piece, batch_rows=batch_rows, **columns):
            assert 0 < len(batch.encoded) == len(batch.fragments) == len(batch.labels) <= batch_rows
            assert batch.fragments.to_pylist() == [f"#row={number}" for number in range(row, row + len(batch.encoded))]
            assert (batch.fragments.type, batch.labels.type) == (pa.string(), pa.int16())
            batch.encoded.validate(full=True)
            row += len(batch.encoded)
            found.append(batch)
        assert row == piece.first_row + piece.rows
    return found


def values_of(batches: Sequence[ImageBatch]) -> Values:
    values = [value for batch in batches for value in batch.encoded.to_pylist()]
    return [value["bytes"] if isinstance(value, dict) else value for value in values]


def labels_of(batches: Sequence[ImageBatch]) -> list[int | None]:
    return [label for batch in batches for label in batch.labels.to_pylist()]


# Round trips


@settings(deadline=None, print_blob=True, max_examples=150)
@given(
    st.lists(st.none() | st.binary(max_size=300), max_size=60),
    st.sampled_from([STRUCT, pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.large_binary())])]),
    st.integers(1, 70),
    st.tuples(st.integers(1, 70), st.integers(1, 10_000), st.integers(1, 20)),
)
def test_every_image_is_read_once_and_in_order(
    values: Values, kind: pa.DataType, row_group_size: int, sizes: tuple[int, int, int]
):
    file = make_file(pa.table({"image": images_of(values, kind)}), row_group_size)
    assert values_of(read_batches(file, *sizes)) == values


@settings(deadline=None, print_blob=True, max_examples=50)
@given(
    st.lists(st.none() | st.integers(0, 255), max_size=60),
    st.integers(1, 70),
    st.tuples(st.integers(1, 70), st.integers(1, 100_000), st.integers(1, 20)),
)
def test_raw_pixels_are_returned_unchanged(tones: list[int | None], row_group_size: int, sizes: tuple[int, int, int]):
    values = [None if tone is None else bytes([tone]) * 784 for tone in tones]
    file = make_file(pa.table({"pixels": pa.array(values, pa.binary(784))}), row_group_size)
    found = read_batches(file, *sizes)
    assert values_of(found) == values
    assert all(batch.encoded.type == pa.binary(784) for batch in found)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.uint8(), 784),
        pa.list_(pa.uint8()),
        pa.large_list(pa.uint8()),
        pa.struct([("bytes", pa.list_(pa.uint8()))]),
    ],
)
def test_lists_of_pixels_are_returned_unchanged(kind: pa.DataType):
    pixels = [[tone] * 784 for tone in range(9)]
    column = pa.array([{"bytes": row} for row in pixels] if pa.types.is_struct(kind) else pixels, kind)
    batches = read_batches(make_file(pa.table({"image": column}), 4), rows=3, batch_rows=2)
    assert [value for batch in batches for value in batch.encoded.to_pylist()] == pixels
    assert all(holds_images(batch.encoded.type) for batch in batches)


def test_empty_row_groups_are_skipped():
    schema = pa.schema([("image", pa.binary())])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema) as writer:
        for values in ([], [b"1"], [], [], [b"2", b"3"], []):
            writer.write_table(pa.table({"image": pa.array(values, pa.binary())}, schema))
    file = pa.BufferReader(buffer.getvalue())
    assert values_of(read_batches(file, rows=1)) == [b"1", b"2", b"3"]


def test_file_without_rows_has_no_pieces():
    assert cut(make_file(pa.table({"image": images_of([])}))) == []


def test_dictionary_of_images_is_decoded():
    column = images_of([b"a", b"b", b"a", None], pa.binary()).dictionary_encode()
    batches = read_batches(make_file(pa.table({"image": column}), 3), batch_rows=3)
    assert values_of(batches) == [b"a", b"b", b"a", None]
    assert {batch.encoded.type for batch in batches} == {pa.binary()}


def test_other_fields_of_an_image_struct_are_not_read():
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("thumbnail", pa.binary())])
    column = pa.array([{"bytes": b"image", "path": "x", "thumbnail": bytes(1000)}, None], kind)
    [batch] = read_batches(make_file(pa.table({"image": column})))
    assert (batch.encoded.to_pylist(), batch.paths) == ([b"image", None], {})


PATH_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("path_type", PATH_TYPES, ids=str)
def test_path_of_an_image_without_bytes_is_returned(path_type: pa.DataType):
    images = pa.array([b"1", None, None, None], pa.binary())
    paths = pa.array(["1.png", "2.png", None, ""]).cast(path_type)
    column = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
    [batch] = read_batches(make_file(pa.table({"image": column})))
    assert (batch.encoded.to_pylist(), batch.paths) == ([b"1", None, None, None], {1: "2.png", 3: ""})


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary_view(),
        pa.large_binary(),
        pa.struct([("bytes", pa.binary_view())]),
        pa.dictionary(pa.int8(), pa.large_binary()),
    ],
    ids=str,
)
def test_binary_of_every_type_is_an_image_column(kind: pa.DataType):
    values = [b"first image", b"2", None, b"first image"]
    plain = pa.array(values, pa.binary())
    if pa.types.is_struct(kind):
        column = pa.StructArray.from_arrays([plain.cast(pa.binary_view())], ["bytes"])
    else:
        column = plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)
    batches = read_batches(make_file(pa.table({"image": column})), batch_rows=3)
    assert values_of(batches) == values
    assert all(holds_images(batch.encoded.type) for batch in batches)


def test_tensors_of_pixels_are_an_image_column():
    pixels = np.arange(3 * 784).astype(np.uint8).reshape(3, 28, 28)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    [batch] = read_batches(make_file(pa.table({"picture": column})))
    assert batch.encoded.to_pylist() == pixels.reshape(3, 784).tolist()


# Pieces


def test_small_row_groups_are_combined_into_pieces():
    file = make_file(pa.table({"image": images_of([b"x"] * 1000)}), 100)
    assert [(piece.first_row, piece.rows, piece.offset) for piece in cut(file, 250)] == [
        (number * 200, 200, number * 2) for number in range(5)
    ]


def test_large_row_group_is_cut():
    file = make_file(pa.table({"image": images_of([b"x"] * 1000)}))
    found = cut(file, rows=250)
    assert [(piece.first_row, piece.rows, piece.offset) for piece in found] == [(n * 250, 250, 0) for n in range(4)]
    # Later pieces also read the rows before them.
    assert sorted(piece.size for piece in found) == [piece.size for piece in found]


def test_row_group_is_cut_into_at_most_max_cuts_pieces():
    file = make_file(pa.table({"image": images_of([b"%d" % number for number in range(1000)])}))
    assert len(cut(file, rows=1)) == MAX_CUTS
    assert values_of(read_batches(file, rows=1)) == [b"%d" % number for number in range(1000)]


def test_row_group_slightly_larger_than_the_target_is_not_cut():
    assert len(cut(make_file(pa.table({"image": images_of([b"x"] * 140)})), rows=100)) == 1


def test_large_row_group_between_small_ones_is_cut():
    tables = [pa.table({"image": images_of([b"%d-%d" % (size, n) for n in range(size)])}) for size in (10, 900, 20)]
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    file = pa.BufferReader(buffer.getvalue())
    assert [piece.rows for piece in cut(file, rows=300)] == [10, 300, 300, 300, 20]
    values = [value["bytes"] for table in tables for value in table.column("image").to_pylist()]
    assert values_of(read_batches(file, rows=300, batch_rows=7)) == values


# Memory


def test_batches_respect_the_maximum_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 10_000)
    generator = np.random.default_rng(0)
    values: Values = [generator.bytes(size) for size in [3_000] * 10 + [100] * 200 + [25_000] * 3 + [1]]
    batches = read_batches(make_file(pa.table({"image": images_of(values)})), batch_rows=1000)
    assert values_of(batches) == values
    assert all(batch.encoded.nbytes <= 10_000 or len(batch.encoded) == 1 for batch in batches)
    assert len(batches) < 20


def test_batches_of_small_images_have_the_requested_rows():
    file = make_file(pa.table({"image": images_of([b"x"] * 1000)}), 100)
    assert [len(batch.encoded) for batch in read_batches(file, batch_rows=256)] == [256, 256, 256, 232]


@pytest.mark.parametrize("distinct", [True, False])
def test_single_large_row_group_is_read_in_bounded_memory(tmp_path: Path, distinct: bool):
    """Use 300 MB of photos, all distinct or one photo repeated by its dictionary."""
    generator = np.random.default_rng(0)
    photo = generator.bytes(100_000)
    photos = [generator.bytes(100_000) if distinct else photo for _ in range(3000)]
    pq.write_table(pa.table({"image": images_of(photos)}), tmp_path / "images.parquet", write_batch_size=64)
    program = f"""
import resource
import pyarrow as pa
from fmnist_model.formats import parquet, parquet_pages
with pa.OSFile({str(tmp_path / "images.parquet")!r}) as file:
    [piece] = parquet.pieces(file, "x", target_rows=10_000, target_bytes=2**40)
    parquet.BATCH_BYTES = 8 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(len(batch.encoded) for batch in parquet.read(file, "x", piece, batch_rows=4096)) == 3000
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(output) < 150  # MiB


# Columns


def test_image_column_is_found_by_its_default_name():
    table = pa.table({"data": [b"d"], "bytes": [b"b"], "img": [b"i"], "embedding": [b"e"]})
    assert values_of(read_batches(make_file(table))) == [b"i"]


def test_column_with_a_default_name_and_another_type_is_skipped():
    table = pa.table({"image": ["s3://b/1.png"], "jpg": [b"j"], "embedding": [b"e"]})
    assert values_of(read_batches(make_file(table))) == [b"j"]


def test_only_column_of_images_is_found():
    table = pa.table({"id": ["1"], "picture": [b"p"], "width": [28]})
    assert values_of(read_batches(make_file(table))) == [b"p"]


def test_named_image_column_takes_precedence():
    table = pa.table({"image": [b"i"], "thumbnail": [b"t"]})
    assert values_of(read_batches(make_file(table), image_column="thumbnail")) == [b"t"]


def test_column_name_with_a_dot_is_read():
    table = pa.table({"image.v2": [b"i"], "image": ["no"]})
    assert values_of(read_batches(make_file(table), image_column="image.v2")) == [b"i"]


@pytest.mark.parametrize(
    ("table", "image_column", "named"),
    [
        (pa.table({"a": [b"x"], "b": [b"y"]}), None, ["a (binary)", "b (binary)"]),
        (pa.table({"a": ["x"], "n": [1]}), None, ["a (string)", "n (int64)"]),
        (pa.table({}), None, ["none"]),
        (pa.table({"image": [b"x"]}), "picture", ["'picture'", "image (binary)"]),
        (pa.table({"image": [b"x"], "picture": ["y"]}), "picture", ["'picture'", "picture (string)"]),
    ],
)
def test_error_about_the_image_column_lists_the_columns(table: pa.Table, image_column: str | None, named: list[str]):
    with pytest.raises(InvalidDataset, match=ORIGIN) as error:
        list(pieces(make_file(table), ORIGIN, target_rows=1, target_bytes=1, image_column=image_column))
    assert all(text in str(error.value) for text in named)


PNG = b"\x89PNG\r\n\x1a\n and so on"
HASHES = [
    pa.array([b"\1" * 32] * 3, pa.binary()),
    pa.array([b"\1" * 20] * 3, pa.binary(20)),
    pa.array([bytes([number]) * 16 for number in range(3)], pa.binary_view()),
    pa.array([[1, 2, 3]] * 3, pa.list_(pa.uint8())),
]


@pytest.mark.parametrize("hashes", HASHES, ids=lambda column: str(column.type))
@pytest.mark.parametrize("name", ["sha256", "data", "Content", "bytes"])
def test_hashes_are_not_images(name: str, hashes: pa.Array):
    with pytest.raises(NoImages, match=name):
        cut(make_file(pa.table({"url": ["x"] * 3, name: hashes})))


@pytest.mark.parametrize("name", ["picture", "Content", "IMAGE", "Jpg", "image_bytes", "img"])
def test_images_are_told_from_hashes_next_to_them(name: str):
    table = pa.table({"sha256": HASHES[0], "embedding": HASHES[3], name: [PNG] * 3})
    assert values_of(read_batches(make_file(table))) == [PNG] * 3


def test_column_of_nulls_next_to_images_is_ignored():
    table = pa.table({"thumbnail": pa.nulls(3, pa.binary()), "picture": [PNG] * 3})
    assert values_of(read_batches(make_file(table))) == [PNG] * 3


def test_error_about_several_image_columns_names_them_and_the_option():
    table = pa.table({"front": [PNG], "back": [PNG], "sha256": [b"\1" * 32]})
    with pytest.raises(InvalidDataset, match=r"front, back\).*--image-column"):
        cut(make_file(table))


def test_file_without_the_named_column_and_without_images_holds_none():
    with pytest.raises(NoImages):
        cut(make_file(pa.table({"url": ["x"], "sha256": [b"\1" * 32]})), image_column="image")
    with pytest.raises(InvalidDataset, match="'image'") as error:
        cut(make_file(pa.table({"picture": [PNG]})), image_column="image")
    assert not isinstance(error.value, NoImages)


def test_duplicate_column_names_are_refused():
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], names=["image", "image"])
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*image .binary., image .binary."):
        cut(make_file(table))


# Labels


@pytest.mark.parametrize("name", ["label", "labels", "class", "fine_label"])
@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int64(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())])
def test_integers_are_labels(name: str, kind: pa.DataType):
    labels = pa.array([0, 9, None, 10, 100], pa.int64())
    table = pa.table(
        {"image": [b"x"] * 5, name: labels.dictionary_encode() if pa.types.is_dictionary(kind) else labels.cast(kind)}
    )
    assert labels_of(read_batches(make_file(table))) == [0, 9, None, None, None]


@pytest.mark.parametrize("number", [-1, -(2**63), 2**63 - 1])
def test_numbers_that_are_no_class_become_null(number: int):
    table = pa.table({"image": [b"x", b"y"], "label": pa.array([number, 3], pa.int64())})
    assert labels_of(read_batches(make_file(table))) == [None, 3]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_class_names_are_labels(kind: pa.DataType):
    names = [*CLASS_NAMES, "7", "cat", None, "10", " Bag "]
    table = pa.table({"image": [b"x"] * len(names), "label": pa.array(names).cast(kind)})
    assert labels_of(read_batches(make_file(table))) == [*range(10), 7, None, None, None, 8]


def test_search_for_labels_skips_columns_of_another_type():
    table = pa.table({"image": [b"x"], "label": [[1, 2]], "class": [3]})
    assert labels_of(read_batches(make_file(table))) == [3]


def test_named_label_column_is_read():
    table = pa.table({"image": [b"x"], "label": [1], "target": [3]})
    assert labels_of(read_batches(make_file(table), label_column="target")) == [3]


@pytest.mark.parametrize("name", ["target", "valid"])
def test_named_column_without_labels_is_refused(name: str):
    table = pa.table({"image": [b"x"], "valid": [True]})
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} .*'{name}'.*valid \(bool\)"):
        cut(make_file(table), label_column=name)


def test_labels_are_null_without_a_label_column():
    assert labels_of(read_batches(make_file(pa.table({"image": [b"x"] * 3})))) == [None] * 3


# Damage


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "it is empty"),
        (b"PAR1", ""),
        (b"\x89PNG" * 100, "PNG image"),
        (b"PAR1" + bytes(100) + b"PAR1", ""),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_error_about_another_format_says_what_the_file_is(data: bytes, found: str):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*{found}"):
        cut(pa.BufferReader(data))


def with_damage(values: Values, damaged: bytes, **options: Any) -> pa.NativeFile:
    """Overwrite the bytes from 40 before a value up to the value's end, and so the header of its page."""
    data = bytearray(make_file(pa.table({"image": images_of(values, pa.binary())}), **options).read())
    start = data.index(damaged)
    data[start - 40 : start + len(damaged)] = b"\xff" * (40 + len(damaged))
    return pa.BufferReader(bytes(data))


def random_values(count: int, size: int = 500) -> Values:
    generator = np.random.default_rng(0)
    return [generator.bytes(size) for _ in range(count)]


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damaged_row_group_costs_only_its_own_images(rows: int, compression: str):
    values = random_values(50)
    first = values[20]
    assert first is not None
    file = with_damage(values, first, row_group_size=10, use_dictionary=False, compression=compression)
    batches = read_batches(file, rows)
    assert values_of(batches) == [*values[:20], *[None] * 10, *values[30:]]
    reasons = [reason for batch in batches for reason in batch.reasons.values()]
    assert len(reasons) == 10
    assert all(reason.startswith("damaged: ") and "row group 2" in reason for reason in reasons)


def test_damaged_page_costs_only_the_rest_of_its_row_group():
    values = random_values(100)
    damaged = values[50]
    assert damaged is not None
    options = {"use_dictionary": False, "compression": "none", "data_page_size": 1, "write_batch_size": 10}
    found = values_of(read_batches(with_damage(values, damaged, **options), batch_rows=1000))
    assert found == values[:50] + [None] * 50


def test_damaged_footer_is_refused():
    data = bytearray(make_file(pa.table({"image": images_of(random_values(3))})).read())
    data[-60:-8] = b"\xff" * 52
    with pytest.raises(InvalidDataset, match=ORIGIN):
        cut(pa.BufferReader(bytes(data)))


def test_image_that_is_too_large_has_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "MAX_IMAGE_BYTES", 100)
    batches = read_batches(make_file(pa.table({"image": images_of([b"x", bytes(101), bytes(100), None])})))
    assert values_of(batches) == [b"x", None, bytes(100), None]
    assert [batch.reasons for batch in batches] == [{1: "too large: 101 bytes"}]


def test_page_that_is_too_large_costs_only_the_rest_of_its_row_group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet_pages, "LARGEST_PAGE_BYTES", 50_000)
    values: Values = [b"a", b"b", bytes(60_000), b"c", b"d"]
    batches = read_batches(make_file(pa.table({"image": images_of(values)}), 2, use_dictionary=False))
    assert values_of(batches) == [b"a", b"b", None, None, b"d"]
    [reasons] = [batch.reasons for batch in batches]
    assert sorted(reasons) == [2, 3]
    assert all(reason.startswith("too large: ") for reason in reasons.values())


@pytest.mark.parametrize("values", [[bytes(20_000)] * 40, [bytes(20_000), *[b"x"] * 100, bytes(20_000)]])
@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}]
)
def test_large_values_are_decoded_few_at_once(values: Values, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet_pages, "MANY_BYTES", 50_000)
    monkeypatch.setattr(parquet_pages, "_FEW_BYTES", 40_000)
    monkeypatch.setattr(parquet, "_GATHERED_BYTES", 0)
    largest: list[int] = []
    take = Columns.take
    monkeypatch.setattr(Columns, "take", lambda self, rows: (largest.append(rows.nbytes), take(self, rows))[1])
    table = pa.table({"image": images_of(values, pa.binary())})
    assert values_of(read_batches(make_file(table, **options))) == values
    assert max(largest) < 70_000


def test_dictionary_of_large_images_is_decoded_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 50_000)
    column = images_of([bytes(20_000), None, b"x"] * 20, pa.binary()).dictionary_encode()
    batches = read_batches(make_file(pa.table({"image": column})))
    assert values_of(batches) == column.to_pylist()
    assert max(batch.encoded.nbytes for batch in batches) <= 50_000


@pytest.mark.parametrize("now", [0, 10, 45])
def test_file_replaced_after_planning_is_refused(now: int):
    planned = make_file(pa.table({"image": images_of([b"x"] * 60)}), 20)
    replaced = make_file(pa.table({"image": images_of([b"x"] * now)}), 20)
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} has \d+ images from row 40\b.*\b20\b"):
        list(read(replaced, ORIGIN, cut(planned, rows=20)[2], batch_rows=10))


def test_file_replaced_by_one_with_larger_row_groups_is_refused():
    planned = make_file(pa.table({"image": images_of([b"x"] * 60)}), 20)
    replaced = make_file(pa.table({"image": images_of([b"x"] * 200)}), 50)
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} has 0 images from row 20\b"):
        list(read(replaced, ORIGIN, cut(planned, rows=20)[1], batch_rows=10))


def test_store_error_is_not_reported_as_damage():
    class FailingFile(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        cut(pa.PythonFile(FailingFile(bytes(10_000)), mode="r"))
