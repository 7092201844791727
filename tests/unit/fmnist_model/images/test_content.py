"""The content of a file decides what it is. What can't be decoded is named."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from fmnist_model.images.decode import decode_image
from tests.unit.fmnist_model.images.picture_files import RAMP, encode, reason

GREY = Image.fromarray(RAMP)


@pytest.mark.parametrize("file_format", ["AVIF", "JPEG2000", "PPM", "BMP", "GIF", "MPO"])
def test_format_is_decoded(file_format: str):
    expected = decode_image(encode(GREY, "PNG")).astype(int)
    np.testing.assert_allclose(decode_image(encode(GREY.convert("RGB"), file_format)), expected, atol=4)


def boxes(major: bytes, *compatible: bytes) -> bytes:
    brands = major + bytes(4) + b"".join(compatible)
    return struct.pack(">I4s", 8 + len(brands), b"ftyp") + brands + bytes(300)


def zip_of_a_document() -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (boxes(b"heic"), "HEIC"),
        (boxes(b"heix", b"mif1", b"heic"), "HEIC"),
        (boxes(b"mif1", b"heic"), "HEIC"),
        (boxes(b"isom", b"mp42"), "video"),
        (boxes(b"qt  "), "video"),
        (boxes(b"crx "), "raw photo"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "video"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "SVG"),
        (b"\x1f\x8b\x08\0" + bytes(40), "gzip"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
    ],
)
def test_known_format_that_is_not_decoded_is_named(data: bytes, words: str):
    assert reason(data).startswith("unsupported: ")
    assert words in reason(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\n<!DOCTYPE html><html><title>404</title></html>",
        b"<?xml version='1.0'?><feed/>",
        zip_of_a_document(),
        b"BMW builds cars in Munich, Leipzig and elsewhere.",
        b"P2 is a parking lot",
        bytes(257) + b"ustar\x0000" + bytes(300),
    ],
)
def test_file_of_another_kind_is_not_an_image(data: bytes):
    assert reason(data).startswith("not an image: ")
