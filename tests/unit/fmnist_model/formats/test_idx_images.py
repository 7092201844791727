"""Every image of an IDX file is read exactly once with its label, or an error names the file."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fmnist_model.errors import InvalidDataset, NoImages
from fmnist_model.formats import idx_images
from fmnist_model.formats.idx_images import label_file_name, pieces, read
from fmnist_model.formats.interface import ContainerPiece, ImageBatch
from fmnist_model.images.decode import decode_images

ORIGIN = "file:///data/train-images-idx3-ubyte"


def encode_idx(values: NDArray[np.uint8], kind: int = 0x08) -> bytes:
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def random_images(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def cut(data: bytes, rows: int = 1000, size: int = 2**30, labels: bytes | None = None) -> list[ContainerPiece]:
    found = pieces(
        pa.BufferReader(data),
        ORIGIN,
        target_rows=rows,
        target_bytes=size,
        labels=None if labels is None else pa.BufferReader(labels),
    )
    return list(found)


def read_batches(
    data: bytes, rows: int = 1000, size: int = 2**30, batch_rows: int = 100, labels: bytes | None = None
) -> list[ImageBatch]:
    """Read all pieces, and check their row numbers and counts."""
    found: list[ImageBatch] = []
    row = 0
    for piece in cut(data, rows, size, labels):
        assert piece.first_row == row
        label_file = None if labels is None else pa.BufferReader(labels)
        for batch in read(pa.BufferReader(data), ORIGIN, piece, batch_rows=batch_rows, labels=label_file):
            assert 0 < len(batch.encoded) == len(batch.labels) <= batch_rows
            assert batch.fragments.to_pylist() == [f"#row={number}" for number in range(row, row + len(batch.encoded))]
            assert (batch.fragments.type, batch.labels.type) == (pa.string(), pa.int16())
            batch.encoded.validate(full=True)
            row += len(batch.encoded)
            found.append(batch)
        assert row == piece.first_row + piece.rows
    return found


def pixels_of(batches: Sequence[ImageBatch]) -> NDArray[np.uint8]:
    decoded = [decode_images(batch.encoded) for batch in batches]
    assert not any(images.rejected for images in decoded)
    return np.concatenate([np.empty((0, 28, 28), np.uint8), *(images.pixels for images in decoded)])


def labels_of(batches: Sequence[ImageBatch]) -> list[int | None]:
    return [label for batch in batches for label in batch.labels.to_pylist()]


@settings(deadline=None, print_blob=True)
@given(
    st.integers(0, 50),
    st.booleans(),
    st.booleans(),
    st.tuples(st.integers(1, 60), st.integers(1, 40_000), st.integers(1, 20)),
)
def test_every_image_is_read_once_with_its_label(
    count: int, gzipped: bool, gzipped_labels: bool, sizes: tuple[int, int, int]
):
    images, labels = random_images(count, 28, 28, seed=count), random_images(count, seed=count) % 10
    data, label_data = encode_idx(images), encode_idx(labels)
    found = read_batches(
        gzip.compress(data, 1) if gzipped else data,
        *sizes,
        labels=gzip.compress(label_data) if gzipped_labels else label_data,
    )
    np.testing.assert_array_equal(pixels_of(found), images)
    assert labels_of(found) == labels.tolist()
    assert all(batch.encoded.type == pa.binary(784) for batch in found)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (28, 27), (27, 28), (32, 32), (64, 30), (5, 61), (3, 784)])
def test_images_of_other_sizes_are_resized_like_image_files(height: int, width: int):
    images = random_images(5, height, width)
    expected = [np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR)) for image in images]
    np.testing.assert_array_equal(pixels_of(read_batches(encode_idx(images), rows=2)), expected)


def test_pieces_have_equal_rows_and_their_size_in_bytes():
    found = cut(encode_idx(random_images(100, 28, 28)), rows=30)
    assert found == [ContainerPiece(number * 25, 25, 0, 25 * 784) for number in range(4)]


def test_pieces_respect_the_target_bytes():
    assert [piece.rows for piece in cut(encode_idx(random_images(10, 28, 28)), size=784 * 3)] == [2, 3, 2, 3]


def test_gzipped_file_is_one_piece():
    data = gzip.compress(encode_idx(random_images(100, 28, 28)))
    assert cut(data, rows=3) == [ContainerPiece(0, 100, 0, len(data))]


def test_gzip_file_with_several_members_is_read():
    images = random_images(10, 28, 28)
    data = encode_idx(images)
    np.testing.assert_array_equal(
        pixels_of(read_batches(gzip.compress(data[:100]) + gzip.compress(data[100:]))), images
    )


def test_batches_respect_the_maximum_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(idx_images, "BATCH_BYTES", 10_000)
    batches = read_batches(encode_idx(random_images(20, 28, 28)))
    assert max(len(batch.encoded) for batch in batches) == 5


def test_file_without_images_has_no_pieces():
    assert cut(encode_idx(random_images(0, 28, 28))) == []


def test_labels_that_are_no_class_become_null():
    labels = encode_idx(np.array([0, 9, 10, 255], np.uint8))
    assert labels_of(read_batches(encode_idx(random_images(4, 28, 28)), labels=labels)) == [0, 9, None, None]


def test_labels_are_null_without_a_label_file():
    assert labels_of(read_batches(encode_idx(random_images(4, 28, 28)))) == [None] * 4


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("s3://bucket/images/t10k-images-idx3-ubyte", "s3://bucket/images/t10k-labels-idx1-ubyte"),
        ("file:///idx3/train-images.idx3-ubyte", "file:///idx3/train-labels.idx1-ubyte"),
        ("emnist-balanced-test-images-idx3-ubyte.gz", "emnist-balanced-test-labels-idx1-ubyte.gz"),
        ("images.idx", "labels.idx"),
        ("pictures.idx", None),
    ],
)
def test_label_file_name_is_derived_from_the_image_file(images: str, labels: str | None):
    assert label_file_name(images) == labels


# Errors

IMAGES = encode_idx(random_images(3, 28, 28))


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("length", [5, 15, 16, 100, len(IMAGES) - 1])
def test_truncated_file_is_refused_when_planning(length: int, gzipped: bool):
    data = gzip.compress(IMAGES[:length]) if gzipped else IMAGES[:length]
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*truncated"):
        cut(data)


def test_every_gzip_truncation_that_loses_images_is_refused():
    data = gzip.compress(IMAGES)
    for length in range(2, len(data)):
        complete = zlib.decompressobj(31).decompress(data[:length]) == IMAGES
        with nullcontext() if complete else pytest.raises(InvalidDataset, match=ORIGIN):
            np.testing.assert_array_equal(pixels_of(read_batches(data[:length])), random_images(3, 28, 28))


@pytest.mark.parametrize("data", [IMAGES + b"\0", gzip.compress(IMAGES + b"\0")])
def test_file_longer_than_its_header_says_is_refused(data: bytes):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*longer"):
        cut(data)


def test_damaged_gzip_file_is_refused_when_reading():
    data = bytearray(gzip.compress(IMAGES, 0))
    data[100] ^= 0xFF
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*gzip.*CRC"):
        read_batches(bytes(data))


@pytest.mark.parametrize("data", [b"other", b"\xff\xff\xff\xff"])
def test_file_of_an_unknown_format_is_refused_with_its_first_bytes(data: bytes):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*IDX.* {data[:4].hex(' ') or 'nothing'} "):
        cut(data)


@pytest.mark.parametrize("data", [b"v1.2 50\njpg 512 6000 0.jpg\n", b"\xfftOc\0\0\0\2", b"0\t0\n1\t350\n"])
def test_index_of_another_program_holds_no_images(data: bytes):
    with pytest.raises(NoImages):
        list(pieces(pa.BufferReader(data), "file:///data/00000.idx", target_rows=1, target_bytes=1))


@pytest.mark.parametrize("shape", [(5,), (5, 10)])
def test_array_of_labels_holds_no_images(shape: tuple[int, ...]):
    with pytest.raises(NoImages, match=r"\[5"):
        cut(encode_idx(random_images(*shape)))


@pytest.mark.parametrize("gzipped", [False, True])
def test_header_that_promises_more_than_the_file_can_hold_is_refused(gzipped: bool):
    data = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 1, 1)
    # gzip records the length modulo 2**32, which is what the header promises.
    data = data[:15] if gzipped else data
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*truncated"):
        cut(gzip.compress(data) if gzipped else data)


def test_values_of_another_type_are_refused():
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*0x0d"):
        cut(encode_idx(random_images(3, 28, 28), 0x0D))


@pytest.mark.parametrize("shape", [(5,), (5, 784), (5, 28, 28, 3)])
def test_array_that_is_not_three_dimensional_is_refused(shape: tuple[int, ...]):
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} .*\[5"):
        cut(encode_idx(random_images(*shape)))


@pytest.mark.parametrize("shape", [(5, 0, 28), (5, 28, 0), (1, 8001, 8000), (1, 2**32 - 1, 2**32 - 1)])
def test_image_size_out_of_range_is_refused(shape: tuple[int, int, int]):
    data = bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape)
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*{shape[1]} x {shape[2]}"):
        cut(data + bytes(min(100, math.prod(shape))))


@pytest.mark.parametrize("count", [0, 2, 4])
def test_label_count_that_differs_from_image_count_is_refused(count: int):
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} .*\[{count}\].*\[3\]"):
        cut(IMAGES, labels=encode_idx(random_images(count)))


def test_image_file_used_as_label_file_is_refused():
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} .*\[3, 28, 28\].*\[3\]"):
        cut(IMAGES, labels=IMAGES)


def test_truncated_label_file_is_refused():
    with pytest.raises(InvalidDataset, match=f"label file of {ORIGIN} .*truncated"):
        cut(IMAGES, labels=encode_idx(random_images(3))[:-1])


def test_file_truncated_after_planning_is_refused():
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*truncated.*2,000"):
        list(read(pa.BufferReader(IMAGES[:2000]), ORIGIN, cut(IMAGES)[0], batch_rows=10))


@settings(deadline=None, print_blob=True)
@given(
    st.binary(max_size=60),
    st.sampled_from([b"", b"\0\0", b"\0\0\x08\x03", b"\0\0\x08\x03\0\0\0\x01\0\0\0\x02", b"\x1f\x8b", b"\x1f\x8b\x08"]),
)
def test_any_bytes_raise_nothing_but_invalid_dataset(data: bytes, magic: bytes):
    with suppress(InvalidDataset):
        read_batches(magic + data)
