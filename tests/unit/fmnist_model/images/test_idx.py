"""IDX files are parsed exactly or refused, and only the published Fashion-MNIST is accepted."""

import gzip
import hashlib
import re
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from fmnist_model.errors import InvalidDataset
from fmnist_model.images import idx
from fmnist_model.images.idx import has_fashion_mnist, parse_idx, read_fashion_mnist

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def encode_idx(values: NDArray[np.uint8], kind: int = 0x08) -> bytes:
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def test_plain_file_is_parsed():
    np.testing.assert_array_equal(parse_idx(encode_idx(IMAGES), "images"), IMAGES)


def test_gzipped_file_is_parsed():
    np.testing.assert_array_equal(parse_idx(gzip.compress(encode_idx(IMAGES)), "images.gz"), IMAGES)


def test_gzip_file_with_several_members_is_parsed():
    data = encode_idx(IMAGES)
    np.testing.assert_array_equal(parse_idx(gzip.compress(data[:9]) + gzip.compress(data[9:]), "images.gz"), IMAGES)


@settings(deadline=None, print_blob=True)
@given(arrays(np.uint8, array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)), st.booleans())
def test_round_trip_is_lossless_for_any_array(values: NDArray[np.uint8], gzipped: bool):
    data = encode_idx(values)
    parsed = parse_idx(gzip.compress(data) if gzipped else data, "values")
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, values)


@pytest.mark.parametrize("length", range(len(encode_idx(IMAGES))))
def test_truncated_file_is_refused(length: int):
    with pytest.raises(InvalidDataset, match="folder/images "):
        parse_idx(encode_idx(IMAGES)[:length], "folder/images")


def test_every_truncation_of_a_gzipped_file_is_refused():
    data = gzip.compress(encode_idx(IMAGES))
    for length in range(len(data)):
        with pytest.raises(InvalidDataset, match=r"folder/images\.gz "):
            parse_idx(data[:length], "folder/images.gz")


def test_error_about_a_truncated_file_gives_both_sizes():
    with pytest.raises(InvalidDataset, match=r"images .*truncated.*\b39\b.*\b40\b.*\[2, 3, 4\]"):
        parse_idx(encode_idx(IMAGES)[:-1], "images")


def test_file_longer_than_its_header_says_is_refused():
    with pytest.raises(InvalidDataset, match=r"images .*longer.*\b41\b.*\b40\b"):
        parse_idx(encode_idx(IMAGES) + b"\0", "images")


@pytest.mark.parametrize("kind", [0x00, 0x09, 0x0B, 0x0C, 0x0D, 0x0E, 0xFF])
def test_values_of_another_type_are_refused(kind: int):
    with pytest.raises(InvalidDataset, match=f"images .*0x{kind:02x}"):
        parse_idx(encode_idx(IMAGES, kind), "images")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"PAR1", b"<html>", b"\x00\x01\x08\x01"])
def test_file_of_another_format_is_refused_with_its_first_bytes(data: bytes):
    with pytest.raises(InvalidDataset, match=f"images .*IDX.*{data[:4].hex(' ')}"):
        parse_idx(data, "images")


def test_empty_file_is_refused():
    with pytest.raises(InvalidDataset, match=r"images .*IDX"):
        parse_idx(b"", "images")


def test_damaged_gzip_file_is_refused():
    data = bytearray(gzip.compress(encode_idx(IMAGES)))
    data[-8] ^= 0xFF  # part of the checksum
    with pytest.raises(InvalidDataset, match=r"images\.gz .*gzip"):
        parse_idx(bytes(data), "images.gz")


@pytest.mark.parametrize("shape", [(1,) * 100, (0, 2**32 - 1, 2**32 - 1, 2**32 - 1)])
def test_header_with_an_impossible_shape_is_refused(shape: tuple[int, ...]):
    header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    with pytest.raises(InvalidDataset, match="images "):
        parse_idx(header + bytes(int(all(shape))), "images")


@settings(deadline=None, print_blob=True)
@given(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\0\0", b"\0\0\x08\x01", b"\0\0\x08\x02", b"\x1f\x8b", b"\x1f\x8b\x08"]),
)
def test_any_bytes_raise_nothing_but_invalid_dataset(data: bytes, magic: bytes):
    with suppress(InvalidDataset):
        assert parse_idx(magic + data, "images").dtype == np.uint8


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write four small files to a folder, and patch the published digests to theirs."""
    generator = np.random.default_rng(0)
    for name in NAMES:
        values = generator.integers(0, 256, (3, 28, 28) if "idx3" in name else (3,), dtype=np.uint8)
        (tmp_path / name).write_bytes(encode_idx(values))
        monkeypatch.setitem(idx.FASHION_MNIST_SHA256, name, hashlib.sha256(encode_idx(values)).hexdigest())
    return tmp_path


def gzip_in_place(path: Path) -> Path:
    gzipped = path.with_name(f"{path.name}.gz")
    gzipped.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return gzipped


def test_four_files_are_read_by_name(published: Path):
    shapes = {name: values.shape for name, values in read_fashion_mnist(published).items()}
    assert shapes == dict(zip(NAMES, [(3, 28, 28), (3,), (3, 28, 28), (3,)], strict=True))


def test_gzipped_files_are_read_like_plain_files(published: Path):
    plain = read_fashion_mnist(published)
    for name in NAMES[1:]:
        gzip_in_place(published / name)
    gzipped = read_fashion_mnist(published)
    assert all(np.array_equal(plain[name], gzipped[name]) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_error_names_the_missing_file(published: Path, name: str):
    (published / name).unlink()
    with pytest.raises(InvalidDataset, match=f"{re.escape(str(published))} .*{name}"):
        read_fashion_mnist(published)


@pytest.mark.parametrize("name", NAMES)
def test_error_names_the_truncated_file(published: Path, name: str):
    path = published / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidDataset, match=f"{re.escape(str(path))} .*truncated"):
        read_fashion_mnist(published)


@pytest.mark.parametrize("name", NAMES)
def test_error_names_the_truncated_gzip_file(published: Path, name: str):
    path = gzip_in_place(published / name)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InvalidDataset, match=f"{re.escape(str(path))} .*gzip"):
        read_fashion_mnist(published)


@pytest.mark.parametrize("name", NAMES)
def test_error_names_the_file_with_other_content(published: Path, name: str):
    path = published / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidDataset, match=f"{re.escape(str(path))} .*Fashion-MNIST.*SHA-256"):
        read_fashion_mnist(published)


def test_error_names_the_file_of_another_format(published: Path):
    path = published / NAMES[2]
    path.write_text("<html>404</html>")
    with pytest.raises(InvalidDataset, match=f"{re.escape(str(path))} .*IDX"):
        read_fashion_mnist(published)


def test_folder_with_the_name_of_a_file_counts_as_missing(published: Path):
    (published / NAMES[0]).unlink()
    (published / NAMES[0]).mkdir()
    with pytest.raises(InvalidDataset, match=f"{re.escape(str(published))} .*{NAMES[0]}"):
        read_fashion_mnist(published)


def test_files_of_another_dataset_with_the_same_names_are_refused(tmp_path: Path):
    for name in NAMES:
        (tmp_path / name).write_bytes(encode_idx(IMAGES))
    with pytest.raises(InvalidDataset, match=f"{NAMES[0]} .*SHA-256"):
        read_fashion_mnist(tmp_path)


def test_error_names_the_missing_folder(tmp_path: Path):
    with pytest.raises(InvalidDataset, match=f"{re.escape(str(tmp_path))}/nowhere"):
        read_fashion_mnist(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [NAMES[0], f"{NAMES[3]}.gz"])
def test_folder_with_one_of_the_files_is_recognized(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    assert has_fashion_mnist(tmp_path)


def test_folder_with_other_files_is_not_recognized(tmp_path: Path):
    (tmp_path / "t10k-images.zip").touch()
    assert not has_fashion_mnist(tmp_path)
