"""Every image is decoded by one transform or rejected with a reason, and none stops the others."""

import io
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from torchvision.transforms import v2

from fmnist_model.dataset import from_table, to_table
from fmnist_model.errors import InvalidDataset
from fmnist_model.images import decode as images
from fmnist_model.images import png
from fmnist_model.images.decode import (
    DecodedImages,
    ImageRejected,
    Invert,
    decode_image,
    decode_images,
    encode_png,
    holds_images,
    huggingface_schema,
)
from tests.harness.absent import needs
from tests.unit.fmnist_model.images.picture_files import photo

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RAW = pa.binary(784)


def encode(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def random_grey(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_grey(height: int, width: int) -> NDArray[np.uint8]:
    """Return a gradient that lossy formats preserve and that reveals every rotation and flip."""
    rows, columns = np.mgrid[0:height, 0:width]
    return (200 * columns / width + 55 * rows / height).astype(np.uint8)


def as_struct(values: list[bytes | None]) -> pa.StructArray:
    return pa.array([None if value is None else {"bytes": value, "path": "a.png"} for value in values], STRUCT)


def assert_every_row_once(decoded: DecodedImages, n: int) -> None:
    """Check that each of `n` rows is either decoded or rejected."""
    assert len(decoded.pixels) + len(decoded.rejected) == n
    assert sorted([*decoded.rows.tolist(), *(row for row, _ in decoded.rejected)]) == list(range(n))
    assert decoded.rows.tolist() == sorted(decoded.rows.tolist())
    assert decoded.pixels.shape == (len(decoded.rows), 28, 28)
    assert decoded.pixels.dtype == np.uint8
    assert all(reason for _, reason in decoded.rejected)


def kinds_of(decoded: DecodedImages) -> list[tuple[int, str]]:
    """Return the row of each rejected image, and its reason up to the colon."""
    return [(row, reason.partition(":")[0]) for row, reason in decoded.rejected]


# Formats


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
    ],
)
def test_lossless_format_is_decoded_exactly(file_format: str, options: dict[str, Any]):
    pixels = random_grey(28, 28)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(pixels), file_format, **options)), pixels)


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 95, "progressive": True}])
def test_jpeg_is_decoded_within_its_loss(options: dict[str, Any]):
    pixels = smooth_grey(28, 28)
    decoded = decode_image(encode(Image.fromarray(pixels), "JPEG", **options))
    np.testing.assert_allclose(decoded.astype(int), pixels, atol=4)


def test_jpeg_with_several_pictures_yields_the_first():
    white, black = Image.new("L", (28, 28), 255), Image.new("L", (28, 28), 0)
    assert decode_image(encode(white, "MPO", save_all=True, append_images=[black])).min() == 255


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_file_with_several_frames_yields_the_first(file_format: str):
    white, black = Image.new("RGB", (28, 28), "white"), Image.new("RGB", (28, 28), "black")
    assert decode_image(encode(white, file_format, save_all=True, append_images=[black])).min() >= 254


@pytest.mark.parametrize("file_format", ["ICO", "EPS", "TGA"])
def test_undocumented_format_is_rejected(file_format: str):
    with pytest.raises(ImageRejected, match=r"^not an image: "):
        decode_image(encode(Image.new("RGB", (32, 32), "white"), file_format))


def test_png_round_trip_is_lossless():
    pixels = random_grey(28, 28)
    np.testing.assert_array_equal(decode_image(encode_png(pixels)), pixels)


def test_dataset_round_trip_is_lossless():
    images, labels = random_grey(12, 28, 28), np.arange(12, dtype=np.uint8) % 10
    data = from_table([to_table(images, labels, 0, "train")], "train")
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)


def test_paths_in_a_dataset_contain_the_number_in_the_split():
    table = to_table(random_grey(2, 28, 28), np.zeros(2, np.uint8), 9_999, "test")
    assert [row["path"] for row in table["image"].to_pylist()] == ["test/09999.png", "test/10000.png"]


# Modes


def luma(colour: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert RGB to ITU-R 601-2 luma in floating point."""
    return colour[..., :3] @ np.array([0.299, 0.587, 0.114])


def picture(mode: str) -> tuple[Image.Image, NDArray[Any]]:  # noqa: PLR0911 (one per mode)
    """Return a 28x28 picture of a mode, and its expected grey levels as floats."""
    colour = random_grey(28, 28, 4)
    grey, alpha = colour[..., 0], colour[..., 3] / 255
    match mode:
        case "1":
            return Image.fromarray(grey > 127), (grey > 127) * 255.0
        case "L":
            return Image.fromarray(grey), grey.astype(float)
        case "LA":
            return Image.fromarray(np.ascontiguousarray(colour[..., [0, 3]]), "LA"), grey * alpha
        case "RGB":
            return Image.fromarray(np.ascontiguousarray(colour[..., :3])), luma(colour)
        case "RGBA":
            return Image.fromarray(colour), luma(colour) * alpha
        case "I;16":
            deep = grey.astype(np.uint16) * 256 + colour[..., 1]
            return Image.fromarray(deep), grey.astype(float)
        case "P":
            palette = random_grey(16, 3, seed=1)
            indexed = Image.fromarray(grey % 16, "P")
            indexed.putpalette(palette.tobytes())
            return indexed, luma(palette)[grey % 16]
    raise AssertionError(mode)


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [(mode, "TIFF") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [(mode, "BMP") for mode in ("1", "L", "P", "RGB")]
    + [("P", "GIF"), ("RGB", "WEBP")],
)
def test_mode_is_converted_to_grey(mode: str, file_format: str):
    original, expected = picture(mode)
    options = {"lossless": True} if file_format == "WEBP" else {}
    decoded = decode_image(encode(original, file_format, **options))
    np.testing.assert_allclose(decoded.astype(float), expected, atol=1)


def test_webp_with_alpha_is_composited_over_black():
    original, expected = picture("RGBA")
    decoded = decode_image(encode(original, "WEBP", lossless=True, exact=True))
    np.testing.assert_allclose(decoded.astype(float), expected, atol=1)


@pytest.mark.parametrize(
    ("ink", "grey"),
    [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((255, 0, 0, 0), 179), ((0, 0, 255, 0), 226), ((0, 0, 0, 128), 127)],
)
@pytest.mark.parametrize("file_format", ["TIFF", "JPEG"])
def test_cmyk_is_converted_to_grey(file_format: str, ink: tuple[int, int, int, int], grey: int):
    decoded = decode_image(encode(Image.new("CMYK", (28, 28), ink), file_format))
    np.testing.assert_allclose(decoded.astype(int), grey, atol=2)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_transparent_entry_of_a_palette_becomes_black(file_format: str):
    indexed = Image.fromarray((np.arange(784) % 2).astype(np.uint8).reshape(28, 28), "P")
    indexed.putpalette([255, 255, 255, 200, 200, 200])
    decoded = decode_image(encode(indexed, file_format, transparency=0))
    np.testing.assert_array_equal(decoded.reshape(-1)[:4], [0, 200, 0, 200])


def test_palette_with_alpha_is_composited_over_black():
    indexed = Image.fromarray((np.arange(784) % 2).astype(np.uint8).reshape(28, 28), "P")
    indexed.putpalette([255, 255, 255, 200, 200, 200])
    decoded = decode_image(encode(indexed, "PNG", transparency=bytes([51, 255])))
    np.testing.assert_array_equal(decoded.reshape(-1)[:4], [51, 200, 51, 200])


def test_transparent_grey_level_becomes_black():
    pixels = np.full((28, 28), 200, np.uint8)
    pixels[0, 0] = 90
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG", transparency=200))
    assert decoded[0, 0] == 90
    assert decoded.reshape(-1)[1:].max() == 0


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_pixels_keep_their_range(file_format: str):
    deep = np.linspace(0, 65535, 784).astype(np.uint16).reshape(28, 28)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(deep), file_format)), deep >> 8)


# Orientation and size


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda stored: stored),
        (2, np.fliplr),
        (3, lambda stored: np.rot90(stored, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda stored: np.rot90(stored, -1)),
        (7, lambda stored: np.rot90(stored, 2).T),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_picture_is_turned_upright_according_to_exif(file_format: str, orientation: int, upright: Any):
    stored = smooth_grey(28, 28)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(file_format, {})
    decoded = decode_image(encode(Image.fromarray(stored).convert("RGB"), file_format, exif=exif, **options))
    np.testing.assert_allclose(decoded.astype(int), upright(stored), atol=5 if file_format == "JPEG" else 1)


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Build little-endian EXIF from entries of tag, type, count and value.

    Values longer than four bytes are placed after the list of entries.
    """
    outside = b""
    listed = b""
    for tag, kind, count, value in sorted(entries):
        place = (
            value.ljust(4, b"\0")
            if len(value) <= 4
            else struct.pack("<I", 8 + 2 + 12 * len(entries) + 4 + len(outside))
        )
        listed += struct.pack("<HHI", tag, kind, count) + place
        outside += value if len(value) > 4 else b""
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + listed + bytes(4) + outside


def jpeg_with(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Encode `smooth_grey` as a JPEG with these EXIF entries."""
    return encode(Image.fromarray(smooth_grey(28, 28)), "JPEG", quality=95, exif=exif_block(*entries))


SHORT, LONG = 3, 4
CLOCKWISE = (0x0112, SHORT, 1, struct.pack("<H", 6))

ODD_TAGS = {
    "resolution is negative over zero": (0x011A, 10, 1, struct.pack("<ii", -1, 0)),
    "resolution is text": (0x011A, 2, 4, b"300\0"),
    "resolution unit is a fraction": (0x0128, 5, 1, struct.pack("<II", 2, 0)),
    "maker is a float": (0x010F, 12, 1, struct.pack("<d", float("nan"))),
    "software is numbers": (0x0131, SHORT, 3, bytes(6)),
    "date is a signed byte": (0x0132, 6, 1, b"\xff"),
    "EXIF folder is text": (0x8769, 2, 4, b"abc\0"),
    "EXIF folder lies before the file": (0x8769, 9, 1, struct.pack("<i", -1)),
    "GPS folder is a float": (0x8825, 11, 1, struct.pack("<f", 1.5)),
    "maker's note is a number": (0x927C, LONG, 1, struct.pack("<I", 7)),
    "unknown tag of an unknown type": (0x9999, 99, 1, b"1234"),
}


@pytest.mark.parametrize("entry", ODD_TAGS.values(), ids=ODD_TAGS)
def test_tag_of_the_wrong_type_leaves_the_orientation_readable(entry: tuple[int, int, int, bytes]):
    decoded = decode_image(jpeg_with(CLOCKWISE, entry))
    np.testing.assert_allclose(decoded.astype(int), np.rot90(smooth_grey(28, 28), -1), atol=5)


ODD_ORIENTATIONS = {
    "0": (0x0112, SHORT, 1, struct.pack("<H", 0)),
    "9": (0x0112, SHORT, 1, struct.pack("<H", 9)),
    "65535": (0x0112, SHORT, 1, b"\xff\xff"),
    "4 billion": (0x0112, LONG, 1, b"\xff\xff\xff\xff"),
    "negative": (0x0112, 8, 1, struct.pack("<h", -6)),
    "no value": (0x0112, SHORT, 0, b""),
    "text": (0x0112, 2, 2, b"6\0"),
    "bytes": (0x0112, 7, 1, b"\6"),
    "fraction of zero": (0x0112, 5, 1, struct.pack("<II", 6, 0)),
    "not a number": (0x0112, 11, 1, struct.pack("<f", float("nan"))),
    "unknown type": (0x0112, 99, 1, b"\6"),
}


@pytest.mark.parametrize("entry", ODD_ORIENTATIONS.values(), ids=ODD_ORIENTATIONS)
def test_odd_orientation_counts_as_upright(entry: tuple[int, int, int, bytes]):
    np.testing.assert_allclose(decode_image(jpeg_with(entry)).astype(int), smooth_grey(28, 28), atol=5)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II", b"Exif\0\0no EXIF at all", exif_block(CLOCKWISE)[:-9]])
def test_exif_that_cannot_be_parsed_counts_as_upright(exif: bytes):
    data = encode(Image.fromarray(smooth_grey(28, 28)), "JPEG", quality=95, exif=exif)
    np.testing.assert_allclose(decode_image(data).astype(int), smooth_grey(28, 28), atol=5)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("xmp", [7, "<x/>"], ids=["number", "text"])
def test_tiff_with_xmp_of_the_wrong_type_is_turned_upright(xmp: int | str, orientation: int):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = orientation
    tags.tagtype[0x02BC] = 2 if isinstance(xmp, str) else SHORT
    tags[0x02BC] = xmp
    decoded = decode_image(encode(Image.fromarray(smooth_grey(28, 28)), "TIFF", tiffinfo=tags))
    np.testing.assert_array_equal(decoded, np.rot90(smooth_grey(28, 28), -1 if orientation == 6 else 0))


SIZES = [(28, 29), (56, 56), (100, 37), (27, 28), (7, 200), (1, 1), (280, 280)]


@pytest.mark.parametrize("size", SIZES)
def test_grey_picture_is_resized_as_by_torchvision(size: tuple[int, int]):
    pixels = random_grey(*size)
    resize = v2.Resize((28, 28), v2.InterpolationMode.BILINEAR, antialias=True)
    expected = resize(torch.from_numpy(pixels)[None])[0].numpy()
    np.testing.assert_allclose(decode_image(encode_png(pixels)).astype(int), expected, atol=1)


@pytest.mark.parametrize("size", SIZES)
def test_colour_picture_is_transformed_as_by_torchvision(size: tuple[int, int]):
    colour = Image.fromarray(random_grey(*size, 3))
    transform = v2.Compose([v2.Grayscale(), v2.Resize((28, 28), v2.InterpolationMode.BILINEAR, antialias=True)])
    np.testing.assert_allclose(decode_image(encode(colour, "PNG")).astype(int), np.asarray(transform(colour)), atol=1)


def test_picture_of_the_models_size_is_not_resampled():
    pixels = (np.indices((28, 28)).sum(axis=0) % 2 * 255).astype(np.uint8)
    decoded = decode_image(encode(Image.fromarray(pixels).convert("RGB"), "PNG"))
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("size", [(224, 224), (300, 400), (768, 1024), (1000, 230), (2000, 2500)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_large_jpeg_looks_as_if_it_were_not_scaled(size: tuple[int, int], mode: str, progressive: bool):
    data = encode(photo(*size).convert(mode), "JPEG", quality=88, progressive=progressive)
    full = Image.open(io.BytesIO(data)).convert("L").resize((28, 28), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(decode_image(data).astype(int), np.asarray(full), atol=1)


# Rejected images


SMALL = {
    "PNG": encode(Image.fromarray(random_grey(8, 8, 3)), "PNG"),
    "PNG with a palette": encode(picture("P")[0].resize((8, 8)), "PNG"),
    "JPEG": encode(Image.fromarray(random_grey(8, 8, 3)), "JPEG"),
    "WebP": encode(Image.fromarray(random_grey(8, 8, 3)), "WEBP"),
    "lossless WebP": encode(Image.fromarray(random_grey(8, 8, 4)), "WEBP", lossless=True),
    "GIF": encode(Image.fromarray(random_grey(8, 8)), "GIF"),
    "BMP": encode(Image.fromarray(random_grey(8, 8, 3)), "BMP"),
    "TIFF": encode(Image.fromarray(random_grey(8, 8, 3)), "TIFF"),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_truncation_is_decoded_or_rejected(name: str):
    data = SMALL[name]
    prefixes = [data[:length] for length in range(len(data))]
    assert_every_row_once(decode_images(as_struct(prefixes)), len(prefixes))


def test_png_that_ends_inside_its_pixels_is_rejected_as_truncated():
    data = encode_png(random_grey(28, 28))
    with pytest.raises(ImageRejected, match=r"^truncated: "):
        decode_image(data[: len(data) // 2])


@settings(deadline=None, print_blob=True)
@given(data=st.data(), name=st.sampled_from(sorted(SMALL)))
def test_damaged_file_is_decoded_or_rejected(data: st.DataObject, name: str):
    damaged = bytearray(SMALL[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert_every_row_once(decode_images(as_struct([bytes(damaged)])), 1)


@settings(deadline=None, print_blob=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_rejected(data: bytes):
    assert_every_row_once(decode_images(as_struct([data])), 1)


def test_empty_file_is_rejected_as_not_an_image():
    with pytest.raises(ImageRejected, match=r"^not an image: "):
        decode_image(b"")


@pytest.mark.parametrize("data", [b"this is a text file\n" * 10, b"<html>", b"PAR1", b"\0" * 100])
def test_file_of_another_format_is_rejected_as_not_an_image(data: bytes):
    with pytest.raises(ImageRejected, match=r"^not an image: "):
        decode_image(data)


def png_header(width: int, height: int) -> bytes:
    """Build a grey PNG whose header states any size, with one row of pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(width + 1))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (9_000, 9_000), (64_000_001, 1)])
def test_decompression_bomb_is_rejected_as_too_large(size: tuple[int, int]):
    with pytest.raises(ImageRejected, match=r"^too large: "):
        decode_image(png_header(*size))


def tiff_header(width: int, height: int) -> bytes:
    """Build a compressed grey TIFF whose header states any size, with few pixels."""
    data = zlib.compress(bytes(1_000))
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(data))])
    directory = struct.pack("<H", len(tags) + 1) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


@needs(Path("/proc/self/status").exists(), "peak memory is read from Linux's /proc")
@pytest.mark.parametrize("encoded", [png_header, tiff_header])
def test_decompression_bomb_takes_little_memory_and_time(encoded: Callable[[int, int], bytes], tmp_path: Path):
    (tmp_path / "small").write_bytes(encoded(28, 28))
    (tmp_path / "bomb").write_bytes(encoded(50_000, 50_000))
    code = """
import sys, time
from pathlib import Path
from fmnist_model.images.decode import ImageRejected, decode_image

def peak_megabytes():  # not `ru_maxrss`, which a process inherits from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

for name in ("small", "bomb"):
    data = (Path(sys.argv[1]) / name).read_bytes()
    before, started = peak_megabytes(), time.perf_counter()
    try:
        decode_image(data)
        print("decoded")
    except ImageRejected as reason:
        print(reason)
print(peak_megabytes() - before, time.perf_counter() - started)
"""
    child = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(child, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    megabytes, seconds = done[2].split()
    assert done[1].startswith("too large: ")
    assert int(megabytes) < 20
    assert float(seconds) < 1


@pytest.mark.filterwarnings("error")
def test_large_picture_below_the_limit_is_decoded():
    assert decode_image(encode(Image.new("1", (8_000, 8_000), 1), "PNG")).min() == 255


class Unforeseen(Exception):
    """An exception that no decoder raises."""


@pytest.mark.parametrize(
    "error", [Unforeseen("two\nlines"), KeyError(7), struct.error("argument"), MemoryError()], ids=repr
)
def test_unexpected_exception_rejects_one_image_by_its_class(error: Exception, monkeypatch: pytest.MonkeyPatch):
    transform = images._to_model_input

    def fail_for_one(picture: Image.Image) -> Image.Image:
        if picture.size == (13, 13):
            raise error
        return transform(picture)

    monkeypatch.setattr(images, "_to_model_input", fail_for_one)
    files = [encode_png(np.full((size, size), size, np.uint8)) for size in (12, 13, 14)]
    decoded = decode_images(pa.array(files, pa.binary()))
    assert decoded.pixels[:, 0, 0].tolist() == [12, 14]
    assert [row for row, _ in decoded.rejected] == [1]
    assert decoded.rejected[0][1].startswith(f"damaged: {type(error).__name__}")
    assert len(decoded.rejected[0][1].splitlines()) == 1


class Panic(BaseException):
    """Stands for what extensions in Rust raise, which is no `Exception`."""


class Unprintable(Exception):
    """An exception whose text can't be made."""

    def __str__(self) -> str:
        raise Unforeseen


@pytest.mark.parametrize(
    "error", [Panic(), Unprintable(), RecursionError(), ValueError("\udcff"), Unforeseen("x" * 9999)]
)
def test_odd_exception_rejects_one_image(error: BaseException, monkeypatch: pytest.MonkeyPatch):
    def fail(picture: Image.Image) -> Image.Image:
        raise error

    monkeypatch.setattr(images, "_to_model_input", fail)
    decoded = decode_images(pa.array([SMALL["PNG"], encode_png(random_grey(28, 28))], pa.binary()))
    [(row, reason)] = decoded.rejected
    assert row == 0
    assert len(reason.encode()) < 1000


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interrupt_stops_decoding(stop: type[BaseException], monkeypatch: pytest.MonkeyPatch):
    def interrupt(picture: Image.Image) -> Image.Image:
        raise stop

    monkeypatch.setattr(images, "_to_model_input", interrupt)
    with pytest.raises(stop):
        decode_images(pa.array([SMALL["PNG"]], pa.binary()))


def test_unexpected_exception_among_plain_pngs_loses_no_image(monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any) -> bytes:
        raise Unforeseen

    monkeypatch.setattr(png.deflate, "zlib_decompress", fail)
    pixels = random_grey(40, 28, 28)
    decoded = decode_images(pa.array([*map(encode_png, pixels), b"no picture"], pa.binary()))
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert [row for row, _ in decoded.rejected] == [40]


# Dark on light


@pytest.mark.parametrize("invert", ["auto", "always", "never"])
def test_dark_on_light_is_inverted_on_request(invert: Invert):
    light_on_dark = np.zeros((28, 28), np.uint8)
    light_on_dark[4:24, 8:20] = 200
    pixels = np.stack([light_on_dark, 255 - light_on_dark])
    expected = {"auto": [0, 0], "always": [255, 0], "never": [0, 255]}[invert]
    decoded = decode_images(pa.array([encode_png(image) for image in pixels], pa.binary()), invert=invert)
    assert decoded.pixels[:, 0, 0].tolist() == expected
    assert [int(decode_image(encode_png(image), invert=invert)[0, 0]) for image in pixels] == expected


@pytest.mark.parametrize(("corners", "inverted"), [((127, 127, 128, 128), False), ((127, 128, 128, 128), True)])
def test_auto_inverts_by_the_mean_of_the_corners(corners: tuple[int, ...], inverted: bool):
    pixels = random_grey(28, 28)
    pixels[[0, 0, -1, -1], [0, -1, 0, -1]] = corners
    np.testing.assert_array_equal(decode_image(encode_png(pixels), invert="auto"), 255 - pixels if inverted else pixels)


def test_auto_ignores_a_light_border_between_dark_corners():
    pixels = np.full((28, 28), 255, np.uint8)
    pixels[[0, 0, -1, -1], [0, -1, 0, -1]] = 0
    np.testing.assert_array_equal(decode_image(encode_png(pixels), invert="auto"), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_image_is_inverted_after_the_transform(mode: str):
    data = encode(picture(mode)[0].resize((40, 50)), "PNG")
    np.testing.assert_array_equal(decode_image(data, invert="always"), 255 - decode_image(data))


def test_inverting_does_not_change_the_column():
    pixels = np.full((2, 28, 28), 255, np.uint8)
    column = COLUMNS["raw pixels"]([image.tobytes() for image in pixels])
    assert decode_images(column, invert="auto").pixels.max() == 0
    assert decode_images(column).pixels.min() == 255


# Columns


COLUMNS: dict[str, Callable[[list[Any]], pa.Array]] = {
    "struct": as_struct,
    "binary": lambda values: pa.array(values, pa.binary()),
    "large binary": lambda values: pa.array(values, pa.large_binary()),
    "raw pixels": lambda values: pa.array(values, RAW),
    "raw pixels in a struct": lambda values: pa.array(
        [value and {"bytes": value} for value in values], pa.struct([("bytes", RAW)])
    ),
    "raw pixels in lists": lambda values: pa.array([value and list(value) for value in values], pa.list_(pa.uint8())),
    "raw pixels in large lists": lambda values: pa.array(
        [value and list(value) for value in values], pa.large_list(pa.uint8())
    ),
    "raw pixels in fixed-size lists": lambda values: pa.array(
        [value and list(value) for value in values], pa.list_(pa.uint8(), 784)
    ),
    "raw pixels in lists in a struct": lambda values: pa.array(
        [value and {"bytes": list(value)} for value in values], pa.struct([("bytes", pa.list_(pa.uint8()))])
    ),
}


def column_values(name: str, pixels: NDArray[np.uint8]) -> list[bytes]:
    return [image.tobytes() if name.startswith("raw") else encode_png(image) for image in pixels]


@pytest.mark.parametrize("name", COLUMNS)
def test_column_is_decoded_in_input_order(name: str):
    pixels = random_grey(5, 28, 28)
    decoded = decode_images(COLUMNS[name](column_values(name, pixels)))
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert decoded.rows.tolist() == list(range(5))


@pytest.mark.parametrize("name", COLUMNS)
def test_slice_of_a_column_is_decoded_from_its_offset(name: str):
    pixels = random_grey(8, 28, 28)
    decoded = decode_images(COLUMNS[name](column_values(name, pixels)).slice(3, 4))
    np.testing.assert_array_equal(decoded.pixels, pixels[3:7])


@pytest.mark.parametrize("name", COLUMNS)
def test_null_is_rejected_as_missing(name: str):
    values = column_values(name, random_grey(2, 28, 28))
    decoded = decode_images(COLUMNS[name]([values[0], None, values[1]]))
    assert kinds_of(decoded) == [(1, "missing")]


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_are_numbered_within_a_slice(name: str):
    pixels = random_grey(6, 28, 28)
    values: list[bytes | None] = [*column_values(name, pixels)]
    values[1] = values[4] = None
    decoded = decode_images(COLUMNS[name](values).slice(2))
    assert decoded.rows.tolist() == [0, 1, 3]
    assert [row for row, _ in decoded.rejected] == [2]
    np.testing.assert_array_equal(decoded.pixels, pixels[[2, 3, 5]])


@pytest.mark.parametrize("name", COLUMNS)
def test_every_row_of_a_column_of_nulls_is_rejected(name: str):
    decoded = decode_images(COLUMNS[name]([None] * 3))
    assert_every_row_once(decoded, 3)
    assert len(decoded.rejected) == 3


@pytest.mark.parametrize("name", COLUMNS)
def test_empty_column_gives_no_images(name: str):
    assert_every_row_once(decode_images(COLUMNS[name]([])), 0)


@pytest.mark.parametrize("name", COLUMNS)
def test_holds_images_accepts_every_decodable_type(name: str):
    assert holds_images(COLUMNS[name]([]).type)


@pytest.mark.parametrize("kind", [pa.list_(pa.uint8()), pa.large_list(pa.uint8())], ids=str)
def test_lists_of_another_length_are_rejected(kind: pa.DataType):
    pixels = random_grey(3, 784)
    rows = [[], pixels[0], pixels[0, :-1], None, pixels[1], [*pixels[1], 0], [1] * 28, pixels[2]]
    decoded = decode_images(pa.array(rows, kind).slice(1))
    assert decoded.rows.tolist() == [0, 3, 6]
    np.testing.assert_array_equal(decoded.pixels.reshape(-1, 784), pixels)
    assert kinds_of(decoded) == [(1, "not an image"), (2, "missing"), (4, "not an image"), (5, "not an image")]
    lengths = {1: "783", 4: "785", 5: "28"}
    assert all(lengths[row] in reason for row, reason in decoded.rejected if row in lengths)


@pytest.mark.parametrize("kind", [pa.list_(pa.uint8()), pa.large_list(pa.uint8()), pa.list_(pa.uint8(), 784)], ids=str)
def test_list_with_a_null_pixel_is_rejected(kind: pa.DataType):
    pixels = random_grey(3, 784)
    rows = [pixels[0], [None, *pixels[1, 1:-1], None], pixels[2]]
    decoded = decode_images(pa.array([pixels[0], *rows], kind).slice(1))
    assert kinds_of(decoded) == [(1, "damaged")]
    assert "2" in decoded.rejected[0][1]
    np.testing.assert_array_equal(decoded.pixels.reshape(-1, 784), pixels[[0, 2]])


@pytest.mark.parametrize("name", [name for name in COLUMNS if name.startswith("raw")])
def test_raw_pixels_are_not_copied(name: str):
    column = COLUMNS[name](column_values(name, random_grey(5, 28, 28)))
    assert not decode_images(column.slice(1, 3)).pixels.flags.owndata


def test_lists_over_sliced_values_are_decoded():
    values = pa.array(random_grey(4 * 784)).slice(784)
    expected = np.asarray(values).reshape(3, 28, 28)[1:]
    for column in (
        pa.FixedSizeListArray.from_arrays(values, 784),
        pa.ListArray.from_arrays(pa.array([0, 784, 1568, 2352], pa.int32()), values),
    ):
        np.testing.assert_array_equal(decode_images(column.slice(1)).pixels, expected)


def test_null_bytes_in_a_struct_are_rejected_as_missing():
    column = pa.array([{"bytes": None, "path": "/tmp/a.png"}], STRUCT)  # noqa: S108 (never opened)
    assert kinds_of(decode_images(column)) == [(0, "missing")]


def test_null_struct_is_rejected_even_if_its_buffer_holds_bytes():
    fields = [pa.array([encode_png(random_grey(28, 28))] * 2), pa.array(["a", "b"])]
    column = pa.StructArray.from_arrays(fields, fields=list(STRUCT), mask=pa.array([False, True]))
    assert kinds_of(decode_images(column)) == [(1, "missing")]


@settings(deadline=None, print_blob=True, max_examples=50)
@given(
    st.lists(st.one_of(st.integers(0, 255), st.none(), st.binary(max_size=4)), max_size=12),
    st.integers(0, 12),
    st.sampled_from(["struct", "binary"]),
)
def test_every_row_is_decoded_or_rejected_in_order(rows: list[int | bytes | None], first: int, column: str):
    values = [encode_png(np.full((28, 28), row, np.uint8)) if isinstance(row, int) else row for row in rows]
    decoded = decode_images(COLUMNS[column](values).slice(first))
    assert_every_row_once(decoded, max(0, len(rows) - first))
    assert decoded.pixels[:, 0, 0].tolist() == [row for row in rows[first:] if isinstance(row, int)]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.int64(),
        pa.binary(783),
        pa.list_(pa.uint8(), 783),
        pa.list_(pa.int8()),
        pa.large_list(pa.float32()),
        pa.list_(pa.list_(pa.uint8())),
        pa.struct([("path", pa.string())]),
        pa.struct([("bytes", pa.string())]),
        pa.null(),
    ],
    ids=str,
)
def test_column_of_another_type_is_refused(kind: pa.DataType):
    assert not holds_images(kind)
    with pytest.raises(InvalidDataset, match=re.escape(str(kind))):
        decode_images(pa.nulls(1, kind))


@pytest.mark.parametrize("invert", ["auto", "always", "never"])
@pytest.mark.parametrize("n", [3, 100])
def test_images_are_inverted_independently_of_the_batch(invert: Invert, n: int):
    pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    expected = [decode_image(encode_png(image), invert=invert) for image in pixels]
    for name, column in COLUMNS.items():
        decoded = decode_images(column(column_values(name, pixels)), invert=invert)
        np.testing.assert_array_equal(decoded.pixels, expected)


def test_holds_images_accepts_hugging_face_images():
    assert holds_images(huggingface_schema().field("image").type)
