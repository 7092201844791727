"""A picture with deep pixels looks like its 8-bit version, or is rejected because nobody knows what is white."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fmnist_model.images import deep_pixels
from fmnist_model.images.decode import decode_image
from tests.unit.fmnist_model.images.picture_files import RAMP, chunk, deep_png, encode, reason, tiff

EIGHT_BITS = decode_image(encode(Image.fromarray(RAMP), "PNG")).astype(int)
DEEP = RAMP.astype(np.uint16) * 257
UNIT = (RAMP / 255).astype(np.float32)
COLOUR = np.repeat(DEEP[..., None], 3, axis=2)
OPAQUE = np.dstack([COLOUR, np.full(RAMP.shape, 65535, np.uint16)])


def packed_12_bits() -> bytes:
    values = (RAMP.astype(int) * 4095 // 255).reshape(-1, 2)
    left, right = values.T
    packed = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=1).astype(np.uint8)
    return tiff(packed.reshape(64, 384), t256=256, t258=12)


SAME = {
    "16 bits, PNG": encode(Image.fromarray(DEEP), "PNG"),
    "16 bits, TIFF": encode(Image.fromarray(DEEP), "TIFF"),
    "16 bits, big endian": tiff(DEEP.astype(">u2")),
    "16 bits, compressed": encode(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "16 bits, 0 is white": tiff(65535 - DEEP, t262=0),
    "16 bits, PGM": encode(Image.fromarray(DEEP), "PPM"),
    "16 bits, JPEG 2000": encode(Image.fromarray(DEEP), "JPEG2000"),
    "16 bits, RGB": deep_png(COLOUR, 2),
    "16 bits, RGBA": deep_png(OPAQUE, 6),
    "16 bits, grey and alpha": deep_png(OPAQUE[..., 2:], 4),
    "12 bits": packed_12_bits(),
    "12 bits, PGM": b"P5\n256 64\n4095\n" + (RAMP.astype(int) * 4095 // 255).astype(">u2").tobytes(),
    "int32 from 0 to 255": encode(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "int32 from 0 to 65,535": encode(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "uint32 from 0 to 255": tiff(RAMP.astype("<u4")),
    "int16 from 0 to 255": tiff(RAMP.astype("<i2")),
    "float from 0 to 1": encode(Image.fromarray(UNIT), "TIFF"),
    "float from 0 to 1, big endian": tiff(UNIT.astype(">f4")),
    "float from 0 to 1, compressed": encode(Image.fromarray(UNIT), "TIFF", compression="tiff_adobe_deflate"),
    "float from 0 to 1, PFM": encode(Image.fromarray(UNIT), "PPM"),
    "float from 0 to 1, 0 is white": tiff(1 - UNIT, t262=0),
    "float with an error of rounding": encode(Image.fromarray(UNIT * np.float32(1.000001)), "TIFF"),
    "float from 0 to 255": encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", SAME)
def test_deep_picture_equals_its_8_bit_version(name: str):
    np.testing.assert_allclose(decode_image(SAME[name]), EIGHT_BITS, atol=1)


def with_value(value: float) -> NDArray[np.float32]:
    changed = UNIT.copy()
    changed[0, 0] = value
    return changed


UNKNOWN = {
    "uint16 from 0 to 255": encode(Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
    "uint16 from 0 to 4,095": encode(Image.fromarray(RAMP.astype(np.uint16) * 16), "TIFF"),
    "uint16 from 0 to 4,095, RGB": deep_png(COLOUR // 16, 2),
    "int32 from 0 to 1,020": encode(Image.fromarray(RAMP.astype(np.int32) * 4), "TIFF"),
    "int32 with negative values": encode(Image.fromarray(RAMP.astype(np.int32) - 1), "TIFF"),
    "int32 with large values": encode(Image.fromarray(RAMP.astype(np.int32) << 22), "TIFF"),
    "uint32 with large values": tiff(RAMP.astype("<u4") << 24),
    "int16 with negative values": tiff((DEEP.astype(int) - 32768).astype("<i2")),
    "int8 with negative values": tiff((RAMP.astype(int) - 128).astype("i1")),
    "float from 0 to 2": encode(Image.fromarray(UNIT * 2), "TIFF"),
    "float from -1 to 1": encode(Image.fromarray(UNIT * 2 - 1), "TIFF"),
    "float with NaN": encode(Image.fromarray(with_value(np.nan)), "TIFF"),
    "float with infinity": encode(Image.fromarray(with_value(np.inf)), "TIFF"),
    "double": tiff(UNIT.astype("<f8")),
    "half": tiff(UNIT.astype("<f2")),
    "CIELAB": encode(Image.new("LAB", (28, 28)), "TIFF"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_picture_whose_white_is_unknown_is_rejected_as_unsupported(name: str):
    assert reason(UNKNOWN[name]).startswith("unsupported: ")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_black_picture_is_black(dtype: Any):
    assert decode_image(encode(Image.fromarray(np.zeros((30, 30), dtype)), "TIFF")).max() == 0


@pytest.mark.parametrize(
    "deep", [deep_png(DEEP, 0, chunk(b"tRNS", b"\xff\xff")), deep_png(COLOUR, 2, chunk(b"tRNS", b"\xff\xff" * 3))]
)
def test_transparent_level_of_16_bits_becomes_black(deep: bytes):
    black = np.where(RAMP == 255, 0, RAMP).astype(np.uint8)
    np.testing.assert_allclose(
        decode_image(deep), decode_image(encode(Image.fromarray(black), "PNG")).astype(int), atol=1
    )


def test_large_picture_is_converted_in_strips(monkeypatch: pytest.MonkeyPatch):
    whole = {name: decode_image(data) for name, data in SAME.items()}
    monkeypatch.setattr(deep_pixels, "STRIP_PIXELS", 1000)
    for name, data in SAME.items():
        np.testing.assert_array_equal(decode_image(data), whole[name])
