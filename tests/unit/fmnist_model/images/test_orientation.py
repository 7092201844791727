"""The orientation is found in any EXIF, however odd the rest of it is, and turns the picture."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmnist_model.images.decode import decode_image
from fmnist_model.images.orientation import exif_orientation
from tests.unit.fmnist_model.images.picture_files import RAMP, chunk, encode, insert, tiff

PICTURE = Image.fromarray(RAMP)
PLAIN = {name: encode(PICTURE, name) for name in ("PNG", "JPEG", "WEBP", "TIFF")}
SHORT, LONG = 3, 4


def block(*entries: tuple[int, int, int, bytes], order: str = "<", rest: bytes = b"") -> bytes:
    """Build EXIF from entries of tag, type, count and four bytes. `rest` follows them."""
    listed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return start + listed + bytes(4) + rest


def orientation(value: int = 6, kind: int = SHORT, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x112, kind, 1, struct.pack(order + {SHORT: "H", LONG: "I"}[kind], value)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(*segments: bytes) -> bytes:
    return PLAIN["JPEG"][:2] + b"".join(segments) + PLAIN["JPEG"][2:]


def webp_with(exif: bytes) -> bytes:
    return encode(PICTURE, "WEBP", exif=exif)


def xmp(value: str) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'.encode()


HEADER = b"Exif\0\0"
RIGHT = block(orientation())
ONE_BYTE_RESOLUTION = block((0x11A, 1, 1, b"\1"), (0x128, SHORT, 1, b"\2\0"), orientation())
RAW_PROFILE = b"Raw profile type exif\0"
HEXADECIMAL = b"\nexif\n      10\n" + (HEADER + RIGHT).hex().encode()

TURNED = {
    "resolution of one byte": jpeg_with(segment(0xE1, HEADER + ONE_BYTE_RESOLUTION)),
    "resolution that points outside": jpeg_with(
        segment(0xE1, HEADER + block((0x11A, 5, 1, b"\xff\xff\xff\x7f"), (0x128, SHORT, 1, b"\2\0"), orientation()))
    ),
    "pointer outside before the orientation": jpeg_with(
        segment(0xE1, HEADER + block((0x10E, 2, 1 << 30, b"\xff\xff\xff\x7f"), orientation()))
    ),
    "tags out of order": jpeg_with(segment(0xE1, HEADER + block((0x9999, 2, 1, b""), orientation()))),
    "more entries than there are": jpeg_with(segment(0xE1, HEADER + RIGHT[:8] + b"\xff\xff" + RIGHT[10:])),
    "big endian": jpeg_with(segment(0xE1, HEADER + block(orientation(order=">"), order=">"))),
    "LONG": jpeg_with(segment(0xE1, HEADER + block(orientation(kind=LONG)))),
    "LONG, big endian": jpeg_with(segment(0xE1, HEADER + block(orientation(kind=LONG, order=">"), order=">"))),
    "directory at the end": jpeg_with(segment(0xE1, HEADER + b"II*\0" + struct.pack("<I", 40) + bytes(32) + RIGHT[8:])),
    "second segment after a damaged one": jpeg_with(segment(0xE1, HEADER + b"??"), segment(0xE1, HEADER + RIGHT)),
    "first of two segments": jpeg_with(
        segment(0xE1, HEADER + RIGHT), segment(0xE1, HEADER + block(orientation(3)))
    ),
    "no header": jpeg_with(segment(0xE1, RIGHT)),
    "JPEG, after XMP": jpeg_with(
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp("3")), segment(0xE1, HEADER + RIGHT)
    ),
    "JPEG, only XMP": jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp("6"))),
    "PNG": insert(PLAIN["PNG"], chunk(b"eXIf", RIGHT)),
    "PNG, with a header": insert(PLAIN["PNG"], chunk(b"eXIf", HEADER + RIGHT)),
    "PNG, after the pixels": PLAIN["PNG"][:-12] + chunk(b"eXIf", RIGHT) + PLAIN["PNG"][-12:],
    "PNG, wrong checksum": insert(PLAIN["PNG"], chunk(b"eXIf", RIGHT)[:-4] + bytes(4)),
    "PNG, one byte of resolution": insert(PLAIN["PNG"], chunk(b"eXIf", ONE_BYTE_RESOLUTION)),
    "PNG, XMP": insert(PLAIN["PNG"], chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp("6"))),
    "PNG, compressed XMP": insert(
        PLAIN["PNG"], chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp("6")))
    ),
    "PNG, ImageMagick": insert(PLAIN["PNG"], chunk(b"tEXt", RAW_PROFILE + HEXADECIMAL)),
    "PNG, ImageMagick, compressed": insert(
        PLAIN["PNG"], chunk(b"zTXt", RAW_PROFILE + b"\0" + zlib.compress(HEXADECIMAL))
    ),
    "WebP": webp_with(RIGHT),
    "WebP, with a header": webp_with(HEADER + RIGHT),
    "WebP, one byte of resolution": webp_with(ONE_BYTE_RESOLUTION),
    "TIFF": tiff(RAMP, t274=6),
    "TIFF, big endian": tiff(RAMP.astype(">u2") * 257, t274=6),
    "TIFF, with odd resolutions": tiff(RAMP, t274=6, t282=7, t283=7, t296=99, t34665=3, t700=1),
    "AVIF": encode(PICTURE, "AVIF", quality=95, exif=RIGHT),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNED)
def test_orientation_is_applied(name: str):
    upright = np.rot90(decode_image(PLAIN["PNG"]).astype(int), -1)
    np.testing.assert_allclose(decode_image(TURNED[name]), upright, atol=4)


UPRIGHT = {
    "0": block(orientation(0)),
    "9": block(orientation(9)),
    "no value": block((0x112, SHORT, 0, b"\6\0")),
    "two values": block((0x112, SHORT, 2, b"\6\0\6\0")),
    "text": block((0x112, 2, 2, b"6\0")),
    "directory outside": b"II*\0" + struct.pack("<I", 1 << 31) + RIGHT[8:],
    "truncated": RIGHT[:18],
    "nothing": b"",
    "other bytes": b"?" * 100,
}


@pytest.mark.parametrize("name", UPRIGHT)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_odd_orientation_leaves_the_picture_as_it_is(name: str, file_format: str):
    exif = UPRIGHT[name]
    files: dict[str, Any] = {
        "JPEG": lambda: jpeg_with(segment(0xE1, HEADER + exif)),
        "PNG": lambda: insert(PLAIN["PNG"], chunk(b"eXIf", exif)),
        "WEBP": lambda: webp_with(HEADER + exif),
    }
    np.testing.assert_array_equal(decode_image(files[file_format]()), decode_image(PLAIN[file_format]))


@given(st.binary(max_size=100), st.sampled_from([b"", HEADER, b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0\1\0\x12\1"]))
def test_any_block_of_exif_has_a_valid_orientation_or_none(rest: bytes, start: bytes):
    assert exif_orientation(start + rest) in (None, *range(1, 9))
