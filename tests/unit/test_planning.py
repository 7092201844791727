"""Inputs are cut into pieces and shards that hold every image exactly once."""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RequestError
from infra.input_files import InputNotFound, list_input_files
from tasks.planning import _cut_into_shards, _pieces, check_inputs

SHARD = 50_000


def pieces_of(rows: list[int]) -> list[dict[str, Any]]:
    return [{"uri": f"file:///{number}", "rows": count} for number, count in enumerate(rows)]


def shard_sizes(cut: list[dict[str, Any]]) -> list[int]:
    return [sum(piece["rows"] for piece in shard) for _, shard in groupby(cut, key=lambda piece: piece["shard"])]


# Shards

any_pieces = st.lists(
    st.one_of(st.just(1), st.integers(1, 100), st.integers(1, 200_000), st.integers(SHARD - 2, SHARD + 2)), max_size=60
)


@settings(deadline=None, print_blob=True)
@given(any_pieces)
def test_no_piece_is_lost_or_moved(rows: list[int]):
    cut = _cut_into_shards(pieces_of(rows))
    assert [{key: piece[key] for key in ("uri", "rows")} for piece in cut] == pieces_of(rows)


@settings(deadline=None, print_blob=True)
@given(any_pieces)
def test_shards_are_numbered_in_order_without_gaps(rows: list[int]):
    numbers = [piece["shard"] for piece in _cut_into_shards(pieces_of(rows))]
    assert numbers == sorted(numbers)
    assert sorted(set(numbers)) == list(range(len(set(numbers))))


@settings(deadline=None, print_blob=True)
@given(any_pieces.filter(bool))
def test_no_shard_strays_from_its_share_by_more_than_a_piece(rows: list[int]):
    share = sum(rows) / max(1, round(sum(rows) / SHARD))
    sizes = shard_sizes(_cut_into_shards(pieces_of(rows)))
    assert max(sizes) <= share + max(rows) + 1e-6
    assert min(sizes) >= share - max(rows) - 1e-6


@settings(deadline=None, print_blob=True)
@given(any_pieces)
def test_cutting_again_cuts_the_same(rows: list[int]):
    assert _cut_into_shards(pieces_of(rows)) == _cut_into_shards(pieces_of(rows))


@pytest.mark.parametrize(
    ("images", "sizes"),
    [(1, [1]), (10_000, [10_000]), (74_999, [74_999]), (75_001, [37_500, 37_501]), (100_000, [SHARD] * 2)],
)
def test_single_images_are_shared_out_evenly(images: int, sizes: list[int]):
    assert shard_sizes(_cut_into_shards(pieces_of([1] * images))) == sizes


def test_piece_larger_than_a_shard_is_a_shard_of_its_own():
    assert shard_sizes(_cut_into_shards(pieces_of([SHARD, 4 * SHARD, SHARD]))) == [SHARD, 4 * SHARD, SHARD]


def test_nothing_is_cut_into_nothing():
    assert _cut_into_shards([]) == []


# Pieces: files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_image_file_is_a_piece_of_one_image(tmp_path: Path):
    touch(tmp_path, "a.png")
    (file,) = list_input_files(str(tmp_path))
    assert list(_pieces(str(tmp_path))) == [
        {"uri": file.uri, "fingerprint": file.fingerprint, "kind": "image", "first_row": 0, "rows": 1}
    ]


def test_pieces_come_in_the_order_of_the_paths(tmp_path: Path):
    touch(tmp_path, "b.png", "a/c.jpg", "a/b.webp")
    assert [piece["uri"].removeprefix(f"file://{tmp_path}/") for piece in _pieces(str(tmp_path))] == [
        "a/b.webp",
        "a/c.jpg",
        "b.png",
    ]


@pytest.mark.parametrize("name", ["A.PNG", "b.JpEg", "c.TIFF"])
def test_ending_in_capitals_is_an_image_too(tmp_path: Path, name: str):
    touch(tmp_path, name)
    assert len(list(_pieces(str(tmp_path)))) == 1


def test_other_files_among_images_are_passed_over(tmp_path: Path):
    touch(tmp_path, "a.png", "README.md", "labels.csv", "Thumbs.db")
    assert [piece["uri"] for piece in _pieces(str(tmp_path))] == [f"file://{tmp_path}/a.png"]


@pytest.mark.parametrize("names", [[], ["README.md"], [".a.png", "_b.png"]], ids=["empty", "other files", "hidden"])
def test_folder_without_images_is_refused_by_name(tmp_path: Path, names: list[str]):
    touch(tmp_path, *names)
    with pytest.raises(InputNotFound, match=f"^{re.escape(str(tmp_path))} holds no images"):
        list(_pieces(str(tmp_path)))


def test_glob_without_a_match_is_refused_by_name(tmp_path: Path):
    touch(tmp_path, "a.png")
    with pytest.raises(InputNotFound, match=re.escape(f"{tmp_path}/*.jpg holds no images")):
        list(_pieces(f"{tmp_path}/*.jpg"))


def test_missing_input_is_refused_by_name(tmp_path: Path):
    with pytest.raises(InputNotFound, match=re.escape(f"{tmp_path}/nowhere")):
        check_inputs([f"{tmp_path}/nowhere"])


def test_one_missing_input_among_others_is_refused(tmp_path: Path):
    touch(tmp_path, "a.png")
    with pytest.raises(InputNotFound, match="nowhere"):
        check_inputs([f"{tmp_path}/a.png", f"{tmp_path}/nowhere", f"{tmp_path}/a.png"])


def test_inputs_with_images_are_accepted(tmp_path: Path):
    touch(tmp_path, "x/a.png")
    check_inputs([str(tmp_path), f"{tmp_path}/x", f"{tmp_path}/x/*.png"])


# Pieces: Parquet


def write_parquet(path: Path, row_groups: list[int], kind: pa.DataType | None = None) -> Path:
    kind = kind or pa.binary()
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for rows in row_groups:
            writer.write_table(pa.table([pa.nulls(rows, kind), pa.nulls(rows, pa.int64())], schema=schema))
    assert pq.read_metadata(path).num_row_groups == len(row_groups)
    return path


@settings(deadline=None, print_blob=True, max_examples=30)
@given(
    st.lists(st.one_of(st.integers(1, 9_000), st.integers(20_000, 120_000), st.just(SHARD)), min_size=1, max_size=12)
)
def test_parquet_is_cut_between_row_groups_and_covered_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, row_groups: list[int]
):
    path = write_parquet(tmp_path_factory.mktemp("cut") / "images.parquet", row_groups)
    pieces = list(_pieces(str(path)))
    ends = [piece["first_row"] + piece["rows"] for piece in pieces]
    assert [piece["first_row"] for piece in pieces] == [0, *ends[:-1]]
    assert ends[-1] == sum(row_groups)
    assert set(ends) <= {sum(row_groups[: number + 1]) for number in range(len(row_groups))}


@pytest.mark.parametrize(
    ("row_groups", "pieces"),
    [
        ([10], [10]),
        ([2_500] * 4, [10_000]),
        ([SHARD, SHARD], [SHARD, SHARD]),
        ([30_000, 30_000, 30_000], [60_000, 30_000]),
        ([200_000, 1], [200_000, 1]),
    ],
)
def test_parquet_is_cut_as_soon_as_a_shard_is_full(tmp_path: Path, row_groups: list[int], pieces: list[int]):
    path = write_parquet(tmp_path / "images.parquet", row_groups)
    assert [piece["rows"] for piece in _pieces(str(path))] == pieces


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary(784),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
    ],
    ids=str,
)
def test_parquet_with_an_image_column_is_taken(tmp_path: Path, kind: pa.DataType):
    path = write_parquet(tmp_path / "images.parquet", [3], kind)
    assert [(piece["kind"], piece["rows"]) for piece in _pieces(str(path))] == [("parquet", 3)]


def test_parquet_ending_in_capitals_is_taken(tmp_path: Path):
    assert len(list(_pieces(str(write_parquet(tmp_path / "IMAGES.PARQUET", [3]))))) == 1


def test_parquet_without_rows_gives_no_piece(tmp_path: Path):
    assert list(_pieces(str(write_parquet(tmp_path / "images.parquet", [])))) == []


def test_parquet_without_rows_is_an_input(tmp_path: Path):
    check_inputs([str(write_parquet(tmp_path / "images.parquet", []))])


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.binary(783), pa.bool_()], ids=str)
def test_image_column_of_another_type_is_refused_with_the_types_there(tmp_path: Path, kind: pa.DataType):
    path = write_parquet(tmp_path / "images.parquet", [3], kind)
    with pytest.raises(
        RequestError, match=re.escape(f"file://{path} ") + r".*'image'.*" + re.escape(f"image ({kind})")
    ):
        list(_pieces(str(path)))


def test_parquet_without_an_image_column_is_refused_with_the_columns_there(tmp_path: Path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"picture": [b"x"], "label": [1]}), path)
    with pytest.raises(RequestError, match=re.escape(f"file://{path} ") + r".*picture \(binary\), label \(int64\)"):
        list(_pieces(str(path)))


def test_parquet_with_two_image_columns_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([b"x"])] * 2, names=["image", "image"]), path)
    with pytest.raises(RequestError, match=re.escape(f"file://{path} ") + r".*image \(binary\), image \(binary\)"):
        list(_pieces(str(path)))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"this is no Parquet file", b"\0" * 1000])
def test_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path, data: bytes):
    path = tmp_path / "broken.parquet"
    path.write_bytes(data)
    with pytest.raises(RequestError, match=re.escape(f"file://{path} can't be read as Parquet")):
        list(_pieces(str(path)))


def test_every_truncation_of_a_parquet_file_is_refused(tmp_path: Path):
    data = write_parquet(tmp_path / "whole.parquet", [3]).read_bytes()
    path = tmp_path / "truncated.parquet"
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(RequestError, match=r"truncated\.parquet can't be read as Parquet"):
            list(_pieces(str(path)))


@settings(deadline=None, print_blob=True, max_examples=200)
@given(data=st.data())
def test_damaged_footer_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    path = write_parquet(tmp_path_factory.getbasetemp() / "damaged.parquet", [3])
    damaged = bytearray(path.read_bytes())
    footer = len(damaged) - 8 - int.from_bytes(damaged[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 2))):
        damaged[data.draw(st.integers(footer, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        list(_pieces(str(path)))
    except RequestError as refusal:
        assert "damaged.parquet" in str(refusal)  # noqa: PT017 (a damage that does no harm is not refused)
