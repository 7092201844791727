"""A file with small flaws is decoded if all its pixels are there, and truncated if they are not."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist_model.images.decode import decode_image
from fmnist_model.images.files.png import clean_png
from tests.unit.fmnist_model.images.picture_files import chunk, encode, insert, photo, reason, tiff

PICTURE = photo(300, 400)
WHOLE = {
    "PNG": encode(PICTURE, "PNG"),
    "JPEG": encode(PICTURE, "JPEG"),
    "progressive JPEG": encode(PICTURE, "JPEG", progressive=True),
    "small JPEG": encode(PICTURE.resize((60, 40)), "JPEG"),
    "GIF": encode(PICTURE, "GIF"),
    "lossy WebP": encode(PICTURE, "WEBP"),
    "lossless WebP": encode(PICTURE, "WEBP", lossless=True),
    "animated WebP": encode(PICTURE, "WEBP", save_all=True, append_images=[Image.new("RGB", (400, 300))]),
    "BMP": encode(PICTURE, "BMP"),
    "TIFF": tiff(np.asarray(PICTURE.convert("L"))),
    "AVIF": encode(PICTURE, "AVIF"),
    "JPEG 2000": encode(PICTURE, "JPEG2000"),
    "PPM": encode(PICTURE, "PPM"),
}
PNG, JPEG, PROGRESSIVE, GIF, WEBP, BMP = (
    WHOLE[name] for name in ("PNG", "JPEG", "progressive JPEG", "GIF", "lossy WebP", "BMP")
)
LARGE = zlib.compress(bytes(3 << 20))

PHOTOSHOP = b"\xff\xed\0\x18Photoshop 3.0\x008BIM\4\4\0\1"

FLAWED = {
    "PNG: text with a wrong checksum": (PNG, insert(PNG, chunk(b"tEXt", b"a\0b")[:-4] + bytes(4))),
    "PNG: text without a separator": (PNG, insert(PNG, chunk(b"tEXt", b"a"), chunk(b"iTXt", b""))),
    "PNG: density of one byte": (PNG, insert(PNG, chunk(b"pHYs", b"1"), chunk(b"gAMA", b""), chunk(b"cHRM", b"1"))),
    "PNG: large profile": (PNG, insert(PNG, chunk(b"iCCP", b"x\0\0" + LARGE))),
    "PNG: large compressed text": (PNG, insert(PNG, chunk(b"zTXt", b"x\0\0" + LARGE))),
    "PNG: large XMP": (PNG, insert(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE))),
    "PNG: large plain text": (PNG, insert(PNG, chunk(b"tEXt", b"x\0" + b"y" * (9 << 20)))),
    "PNG: text that is not compressed": (PNG, insert(PNG, chunk(b"zTXt", b"x\0\0plain"))),
    "PNG: transparency with a wrong checksum": (PNG, insert(PNG, chunk(b"tRNS", bytes(6))[:-4] + bytes(4))),
    "PNG: transparency of another colour type": (PNG, insert(PNG, chunk(b"tRNS", bytes(2)))),
    "PNG: no end": (PNG, PNG[:-12]),
    "PNG: no checksum of the pixels": (PNG, PNG[:-16]),
    "PNG: wrong checksum of the pixels": (PNG, PNG[:-16] + bytes(4) + PNG[-12:]),
    "PNG: bytes after the end": (PNG, PNG + b"garbage"),
    "PNG: animation that is cut": (PNG, insert(PNG, chunk(b"acTL", bytes(3)))),
    "JPEG: no end": (JPEG, JPEG[:-2]),
    "JPEG: half an end": (JPEG, JPEG[:-1]),
    "JPEG: no end, zeros instead": (JPEG, JPEG[:-2] + bytes(9000)),
    "JPEG: bytes after the end": (JPEG, JPEG + b"garbage" * 99),
    "JPEG: bytes before the start": (JPEG, b"\r\n" + JPEG),
    "JPEG: bytes between segments": (JPEG, JPEG[:20] + b"\0\0\0" + JPEG[20:]),
    "JPEG: short JFIF segment": (JPEG, JPEG[:2] + b"\xff\xe0\0\x07JFIF\0" + JPEG[2:]),
    "JPEG: short Adobe segment": (JPEG, JPEG[:2] + b"\xff\xee\0\x07Adobe" + JPEG[2:]),
    "JPEG: damaged profile": (JPEG, JPEG[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + JPEG[2:]),
    "JPEG: damaged Photoshop segment": (JPEG, JPEG[:2] + PHOTOSHOP + JPEG[2:]),
    "JPEG: many profiles": (JPEG, JPEG[:2] + (b"\xff\xe2\xff\xff" + bytes(65533)) * 60 + JPEG[2:]),
    "progressive JPEG: no end": (PROGRESSIVE, PROGRESSIVE[:-2]),
    "GIF: no trailer": (GIF, GIF[:-1]),
    "GIF: no terminator": (GIF, GIF[:-2]),
    "GIF: bytes after the end": (GIF, GIF + b"garbage"),
    "GIF: cut second frame": (GIF, encode(PICTURE, "GIF", save_all=True, append_images=[photo(300, 400, 1)])[:-999]),
    "WebP: wrong size of the file": (WEBP, WEBP[:4] + b"\1\0\0\0" + WEBP[8:]),
    "WebP: too large a size of the file": (WEBP, WEBP[:4] + b"\xff\xff\xff\x7f" + WEBP[8:]),
    "WebP: large metadata": (WEBP, encode(PICTURE, "WEBP", icc_profile=bytes(2 << 20), exif=bytes(2 << 20))),
    "animated WebP: cut second frame": (WHOLE["animated WebP"], WHOLE["animated WebP"][:-20]),
    "BMP: wrong size of the file": (BMP, BMP[:2] + b"\1\0\0\0" + BMP[6:]),
    "BMP: bytes after the end": (BMP, BMP + b"garbage"),
    "TIFF: bytes after the end": (WHOLE["TIFF"], WHOLE["TIFF"] + b"garbage"),
    "TIFF: profile that is not there": (WHOLE["TIFF"], tiff(np.asarray(PICTURE.convert("L")), t34675=99)),
    "TIFF: one strip of endless rows": (WHOLE["TIFF"], tiff(np.asarray(PICTURE.convert("L")), t278=0xFFFFFFFF)),
    "AVIF: bytes after the end": (WHOLE["AVIF"], WHOLE["AVIF"] + b"garbage"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAWED)
def test_flawed_file_with_all_pixels_is_decoded(name: str):
    whole, flawed = FLAWED[name]
    np.testing.assert_array_equal(decode_image(flawed), decode_image(whole))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("part", [0.5, 0.8])
def test_file_that_is_cut_in_its_pixels_is_truncated(name: str, part: float):
    if name == "animated WebP":
        part /= 2  # the first half is the first frame
    assert reason(WHOLE[name][: int(part * len(WHOLE[name]))]).startswith("truncated: ")


@pytest.mark.parametrize("name", ["JPEG", "small JPEG", "progressive JPEG"])
@pytest.mark.parametrize("part", [0.1, 0.9, 0.95])
def test_jpeg_that_is_cut_is_truncated(name: str, part: float):
    assert reason(WHOLE[name][: int(part * len(WHOLE[name]))]).startswith("truncated: ")


@pytest.mark.parametrize("name", ["JPEG", "progressive JPEG"])
def test_jpeg_whose_rest_is_zeros_is_truncated(name: str):
    half = len(WHOLE[name]) // 2
    assert reason(WHOLE[name][:half] + bytes(half)).startswith("truncated: ")


def test_png_without_metadata_is_left_as_it_is():
    assert clean_png(PNG).data == PNG


def test_decoder_prints_nothing(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder, tmp_path: Path):
    deflated = encode(PICTURE, "TIFF", compression="tiff_adobe_deflate")
    assert reason(deflated[:8] + bytes(100) + deflated[108:]) != "decoded"
    for data in WHOLE.values():
        reason(data[:-30])
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
