"""Decoding many PNG files together gives exactly the same result as decoding each with Pillow."""

import io
import itertools
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fmnist_model.images.decode import ImageRejected, decode_image, decode_images, encode_png
from fmnist_model.images.png import decode_plain_pngs
from tests.harness.absent import needs

MIN_FILES = 24
"""Minimum number of files that are decoded together."""


def random_images(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return noise, steep and gentle slopes, and black and white, to reach each branch of each filter."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (n, 28, 28))
    slopes = rng.integers(-40, 41, (n, 2, 1, 1)) * np.mgrid[0:28, 0:28][None]
    gentle = slopes.sum(axis=1) // 4 + noise // 32
    extremes = np.where(noise % 3 == 0, 255, 0)
    kind = rng.integers(0, 3, (n, 1, 1))
    return np.choose(kind, [noise, gentle % 256, extremes]).astype(np.uint8)


# A small encoder for files that Pillow doesn't write


def predictor(number: int, left: int, above: int, above_left: int) -> int:
    """Predict a pixel as the standard defines (https://www.w3.org/TR/png-3/#9Filters)."""
    distances = [abs(above - above_left), abs(left - above_left), abs(left + above - 2 * above_left)]
    nearest = (left, above, above_left)[distances.index(min(distances))]
    return (0, left, above, (left + above) // 2, nearest)[number]


def filtered(pixels: NDArray[np.uint8], filters: Sequence[int]) -> bytes:
    padded = np.zeros((29, 29), int)
    padded[1:, 1:] = pixels
    scanlines = bytearray()
    for row, number in enumerate(filters):
        scanlines.append(number)
        for column in range(28):
            neighbours = padded[row + 1, column], padded[row, column + 1], padded[row, column]
            scanlines.append((padded[row + 1, column + 1] - predictor(number, *map(int, neighbours))) % 256)
    return bytes(scanlines)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")


def header(width: int = 28, height: int = 28, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(stream: bytes, *, head: bytes | None = None, before: bytes = b"", after: bytes = b"") -> bytes:
    return SIGNATURE + (head or header()) + before + chunk(b"IDAT", stream) + after + END


def encode(pixels: NDArray[np.uint8], filters: Iterable[int], level: int = 6) -> bytes:
    return png(zlib.compress(filtered(pixels, list(filters)), level))


# Comparison of both decoders

GOOD = [encode_png(image) for image in random_images(MIN_FILES, seed=9)]
REASON_FOR_NULL = decode_images(pa.nulls(1, pa.binary())).rejected[0][1]


def assert_same_as_one_by_one(files: Sequence[bytes | None], kind: pa.DataType | None = None) -> None:
    """Decode the files together with enough good ones, and compare with each file decoded alone."""
    mixed = [*GOOD, *files]
    pixels, rows, rejected = [], [], []
    for row, data in enumerate(mixed):
        try:
            if data is None:
                raise ImageRejected(REASON_FOR_NULL)
            pixels.append(decode_image(data))
            rows.append(row)
        except ImageRejected as reason:
            rejected.append((row, str(reason)))
    decoded = decode_images(pa.array(mixed, kind or pa.binary()))
    assert decoded.rejected == rejected
    np.testing.assert_array_equal(decoded.rows, rows)
    np.testing.assert_array_equal(decoded.pixels, np.array(pixels))


def are_plain(files: Sequence[bytes]) -> list[bool]:
    """Return which of the files are decoded together."""
    pixels = np.empty((len(GOOD) + len(files), 28, 28), np.uint8)
    decoded = decode_plain_pngs(pa.array([*GOOD, *files], pa.binary()), pixels)
    assert decoded[: len(GOOD)].all()
    return decoded[len(GOOD) :].tolist()


def assert_all_plain(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> None:
    decoded = np.zeros_like(pixels)
    assert decode_plain_pngs(pa.array(files, pa.binary()), decoded).all()
    np.testing.assert_array_equal(decoded, pixels)


# Plain files


@pytest.mark.parametrize("level", range(10))
def test_files_by_pillow_are_decoded_at_each_compression_level(level: int):
    pixels = random_images(100, seed=level)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=level)
        files.append(buffer.getvalue())
    assert_all_plain(files, pixels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torchvision is moving its encoders to another package
@pytest.mark.parametrize("level", range(10))
def test_files_by_torchvision_are_decoded_at_each_compression_level(level: int):
    from torchvision.io import encode_png as encode

    pixels = random_images(MIN_FILES, seed=level)
    assert_all_plain([encode(torch.from_numpy(image)[None], level).numpy().tobytes() for image in pixels], pixels)


def test_file_compressed_in_several_blocks_is_decoded():
    pixels = random_images(MIN_FILES)
    files = []
    for image in pixels:
        scanlines, compressor = filtered(image, [1] * 28), zlib.compressobj()
        parts = [
            compressor.compress(scanlines[first : first + 100]) + compressor.flush(zlib.Z_FULL_FLUSH)
            for first in range(0, 812, 100)
        ]
        files.append(png(b"".join(parts) + compressor.flush()))
    assert_all_plain(files, pixels)


@pytest.mark.parametrize("number", range(5))
def test_filter_is_reversed(number: int):
    pixels = random_images(60)
    assert_all_plain([encode(image, [number] * 28) for image in pixels], pixels)


@pytest.mark.parametrize("filters", [(0, 1), (1, 2), (2, 4), (1, 3), (0, 1, 2, 3, 4)])
def test_mixed_filters_are_reversed(filters: tuple[int, ...]):
    rng = np.random.default_rng(0)
    pixels = random_images(200)
    assert_all_plain([encode(image, rng.choice(filters, 28)) for image in pixels], pixels)


@settings(deadline=None, print_blob=True, max_examples=50)
@given(
    st.lists(st.integers(0, 4), min_size=28, max_size=28),
    st.lists(st.integers(0, 255), min_size=1, max_size=784),
    st.integers(0, 9),
)
def test_any_filters_of_any_image_are_reversed(filters: list[int], values: list[int], level: int):
    pixels = np.resize(np.array(values, np.uint8), (28, 28))
    assert_all_plain([encode(pixels, filters, level)] * MIN_FILES, np.stack([pixels] * MIN_FILES))


def test_paeth_filter_follows_the_standard_for_all_kinds_of_neighbours():
    # Use all triples of 12 values as neighbours. They include equal values, ties and both orders of each pair.
    values = [0, 1, 2, 3, 84, 85, 127, 128, 129, 170, 254, 255]
    squares = [np.array([[c, b], [a, 77]], np.uint8) for a, b, c in itertools.product(values, repeat=3)]
    tiles = np.resize(np.array(squares), (len(squares) + 195, 2, 2))
    pixels = np.stack(
        [
            tiles[first : first + 196].reshape(14, 14, 2, 2).swapaxes(1, 2).reshape(28, 28)
            for first in range(0, len(squares), 196)
        ]
        * 3
    )
    assert_all_plain([encode(image, [4] * 28) for image in pixels], pixels)


@pytest.mark.parametrize("n", [24, 63, 64, 65, 2_047, 2_048, 2_049, 4_097, 6_200])
def test_batch_of_any_size_is_decoded_in_order(n: int):
    pixels = random_images(50)
    files = [encode_png(image) for image in pixels]
    chosen = np.random.default_rng(n).integers(0, 50, n)
    assert_all_plain([files[number] for number in chosen], pixels[chosen])


def test_other_files_do_not_change_the_order():
    chosen = np.random.default_rng(0).integers(0, len(GOOD), 5_000)
    files = [None if row % 7 == 3 else GOOD[number] for row, number in enumerate(chosen)]
    assert_same_as_one_by_one(files)


def test_few_files_are_left_to_the_general_decoder():
    pixels = np.empty((MIN_FILES - 1, 28, 28), np.uint8)
    assert not decode_plain_pngs(pa.array(GOOD[1:], pa.binary()), pixels).any()


def test_empty_column_gives_no_images():
    empty = pa.array([], pa.binary())
    assert decode_plain_pngs(empty, np.empty((0, 28, 28), np.uint8)).tolist() == []


def test_wrong_checksum_of_the_pixel_chunk_is_ignored_as_by_pillow():
    damaged = bytearray(GOOD[0])
    damaged[-13] ^= 1
    assert are_plain([bytes(damaged)]) == [True]
    assert_same_as_one_by_one([bytes(damaged)])


# Other files


PIXELS = random_images(1, seed=3)[0]
STREAM = zlib.compress(filtered(PIXELS, [1, 2, 3, 4] * 7))


def edited(data: bytes, position: int, value: int) -> bytes:
    return data[:position] + bytes([value]) + data[position + 1 :]


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + b"\0\0\0\0"


def by_pillow(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def preset_dictionary(scanlines: bytes) -> bytes:
    compressor = zlib.compressobj(zdict=b"\0" * 32)
    return compressor.compress(scanlines) + compressor.flush()


SCANLINES = filtered(PIXELS, [1, 2, 3, 4] * 7)
WHOLE = png(STREAM)
GREY = Image.fromarray(PIXELS)

OTHERS = {
    "another width": by_pillow(GREY.resize((27, 28))),
    "another height": by_pillow(GREY.resize((28, 29))),
    "colour": by_pillow(GREY.convert("RGB")),
    "alpha": by_pillow(GREY.convert("LA")),
    "palette": by_pillow(GREY.convert("P")),
    "one bit": by_pillow(GREY.convert("1")),
    "sixteen bits": by_pillow(Image.fromarray(PIXELS.astype(np.uint16) << 8)),
    "interlaced": png(STREAM, head=header(interlace=1)),
    "unknown compression": png(STREAM, head=chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 1, 0, 0))),
    "unknown set of filters": png(STREAM, head=chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 1, 0))),
    "long header": png(STREAM, head=chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0) + b"\0")),
    "header with a wrong checksum": edited(WHOLE, 32, WHOLE[32] ^ 1),
    "transparent grey level": png(STREAM, before=chunk(b"tRNS", struct.pack(">H", int(PIXELS[5, 5])))),
    "orientation": png(STREAM, before=chunk(b"eXIf", exif(6))),
    "orientation after the pixels": png(STREAM, after=chunk(b"eXIf", exif(6))),
    "text": png(STREAM, before=chunk(b"tEXt", b"Comment\0shirt")),
    "text after the pixels": png(STREAM, after=chunk(b"tEXt", b"date:create\x002026-11-23T05:43:00+00:00")),
    "text that names a property": png(STREAM, before=chunk(b"tEXt", b"transparency\x00" + b"0")),
    "gamma": png(STREAM, before=chunk(b"gAMA", struct.pack(">I", 45_455)) + chunk(b"bKGD", b"\0\xff")),
    "time": png(STREAM, before=chunk(b"tIME", struct.pack(">HBBBBB", 2026, 11, 23, 5, 43, 0))),
    "animation": png(STREAM, before=chunk(b"acTL", struct.pack(">II", 1, 0))),
    "private chunk": png(STREAM, before=chunk(b"prVt", b"abc")),
    "two chunks of pixels": png(STREAM[:50], after=chunk(b"IDAT", STREAM[50:])),
    "empty chunk of pixels": png(b"", after=chunk(b"IDAT", STREAM)),
    "bytes after the end": WHOLE + b"\0",
    "no end": WHOLE[:-12],
    "end with a wrong checksum": edited(WHOLE, len(WHOLE) - 1, 0),
    "another chunk instead of the end": WHOLE[:-12] + chunk(b"IENE", b""),
    "another chunk instead of the pixels": WHOLE.replace(b"IDAT", b"IDAU"),
    "stream with a wrong checksum": png(edited(STREAM, len(STREAM) - 1, STREAM[-1] ^ 1)),
    "stream without its checksum": png(STREAM[:-4]),
    "stream without its end": png(STREAM[:-40]),
    "stream followed by more": png(STREAM + b"more"),
    "stream with a row too few": png(zlib.compress(SCANLINES[:-29])),
    "stream with a byte too few": png(zlib.compress(SCANLINES[:-1])),
    "stream with a byte too many": png(zlib.compress(SCANLINES + b"\0")),
    "stream with a row too many": png(zlib.compress(SCANLINES + bytes(29))),
    "stream without a header": png(STREAM[2:-4]),
    "stream with a preset dictionary": png(preset_dictionary(SCANLINES)),
    "gzip stream": png(zlib.compress(SCANLINES, wbits=31)),
    "two streams": png(zlib.compress(SCANLINES[:406])[:-4] + zlib.compress(SCANLINES[406:])[2:]),
    "unknown filter in the first row": png(zlib.compress(edited(SCANLINES, 0, 5))),
    "unknown filter in the last row": png(zlib.compress(edited(SCANLINES, 27 * 29, 255))),
    "no pixels": png(b""),
    "JPEG": b"\xff\xd8\xff\xe0" + WHOLE,
    "empty file": b"",
}
"""Files that each differ from a plain one in one property."""

STILL_PLAIN = {"stream followed by more"}
"""Files that libdeflate decodes the same way as Pillow."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_file_is_left_to_the_general_decoder(name: str):
    assert are_plain([OTHERS[name]]) == [name in STILL_PLAIN]


@pytest.mark.parametrize("name", OTHERS)
def test_other_file_is_decoded_as_if_alone(name: str):
    assert_same_as_one_by_one([OTHERS[name]])


def test_mixed_files_are_decoded_as_if_alone():
    rng = np.random.default_rng(0)
    kinds: list[bytes | None] = [*OTHERS.values(), *GOOD, None]
    assert_same_as_one_by_one([kinds[number] for number in rng.integers(0, len(kinds), 500)])


@pytest.mark.parametrize("data", [WHOLE, GOOD[0]], ids=["all filters", "by Pillow"])
def test_file_truncated_at_any_byte_is_decoded_as_if_alone(data: bytes):
    assert_same_as_one_by_one([data[:length] for length in range(len(data))])


def test_file_with_any_flipped_bit_is_decoded_as_if_alone():
    data = encode(np.kron(np.eye(4, dtype=np.uint8), np.full((7, 7), 200, np.uint8)), [0, 1, 2, 3, 4, 4, 4] * 4)
    bits = range(8 * len(data))
    assert_same_as_one_by_one([edited(data, bit // 8, data[bit // 8] ^ 1 << bit % 8) for bit in bits])


@settings(deadline=None, print_blob=True, max_examples=30)
@given(st.data())
def test_damaged_files_are_decoded_as_if_alone(data: st.DataObject):
    files = []
    for number in data.draw(st.lists(st.integers(0, len(GOOD) - 1), min_size=1, max_size=8)):
        damaged = bytearray(GOOD[number])
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        files.append(bytes(damaged))
    assert_same_as_one_by_one(files)


@settings(deadline=None, print_blob=True, max_examples=30)
@given(st.data())
def test_damaged_scanlines_are_decoded_as_if_alone(data: st.DataObject):
    damaged = bytearray(SCANLINES)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert_same_as_one_by_one([png(zlib.compress(bytes(damaged[: data.draw(st.integers(780, 812))]), 1))])


def bomb(megabytes: int) -> bytes:
    compressor = zlib.compressobj(9)
    return png(b"".join(compressor.compress(bytes(10**6)) for _ in range(megabytes)) + compressor.flush())


@needs(Path("/proc/self/status").exists(), "peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("megabytes", "n"), [(1, 500), (300, 1)])
def test_decompression_bombs_take_little_memory(megabytes: int, n: int, tmp_path: Path):
    files = [*GOOD, *[bomb(megabytes)] * n]
    pq.write_table(pa.table({"image": pa.array(files, pa.binary())}), tmp_path / "bombs.parquet")
    code = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from fmnist_model.images.decode import decode_images

def peak_megabytes():  # not `ru_maxrss`, which a process inherits from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

column = pq.read_table(sys.argv[1])["image"].combine_chunks()
before = peak_megabytes()
assert len(decode_images(column).pixels) == len(column)  # Pillow decodes 28 rows of each and ignores the rest
print(peak_megabytes() - before)
"""
    child = [sys.executable, "-c", code, str(tmp_path / "bombs.parquet")]
    assert int(subprocess.run(child, capture_output=True, text=True, check=True, timeout=120).stdout) < 100


# Columns


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_nulls_and_other_files_keep_their_rows(kind: pa.DataType):
    assert_same_as_one_by_one([None, GOOD[0], b"", None, OTHERS["colour"], GOOD[1], b"text"], kind)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_slice_of_a_column_is_decoded_together(kind: pa.DataType):
    pixels = random_images(60)
    column = pa.array([None, b"", *[encode_png(image) for image in pixels], None], kind)
    decoded = np.empty((40, 28, 28), np.uint8)
    assert decode_plain_pngs(column.slice(12, 40), decoded).all()
    np.testing.assert_array_equal(decoded, pixels[10:50])


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("cut", [lambda column: column, lambda column: column.slice(30, 50)], ids=["whole", "slice"])
def test_struct_column_is_decoded_like_its_bytes(cut: Callable[[pa.Array], pa.Array]):
    files = [None if row % 11 == 5 else GOOD[row % len(GOOD)] for row in range(100)]
    structs = [None if data is None else {"bytes": data, "path": None} for data in files]
    decoded = decode_images(cut(pa.array(structs, STRUCT)))
    expected = decode_images(cut(pa.array(files, pa.binary())))
    np.testing.assert_array_equal(decoded.rows, expected.rows)
    np.testing.assert_array_equal(decoded.pixels, expected.pixels)
    assert decoded.rejected == expected.rejected


def test_null_struct_is_rejected_even_if_its_buffer_holds_a_plain_file():
    fields = [pa.array(GOOD, pa.binary()), pa.nulls(len(GOOD), pa.string())]
    nulls = pa.array([row == 3 for row in range(len(GOOD))])
    column = pa.StructArray.from_arrays(fields, fields=list(STRUCT), mask=nulls)
    [(row, reason)] = decode_images(column).rejected
    assert (row, reason.partition(":")[0]) == (3, "missing")


def test_decoded_pixels_are_writeable():
    assert decode_images(pa.array(GOOD, pa.binary())).pixels.flags.writeable
