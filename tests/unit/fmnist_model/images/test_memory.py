"""Decoding one image takes bounded memory, whatever its file holds."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.harness.absent import needs
from tests.unit.fmnist_model.images.picture_files import chunk, encode, insert, reason

pytestmark = pytest.mark.slow  # one process for each image

MEBIBYTES = 1536
"""Memory that a decoding thread may take."""

SIDE = 7_999
"""Side of a picture just below 64 megapixels."""

CODE = """
import sys
from pathlib import Path
from PIL import Image
from fmnist_model.images.decode import ImageRejected, decode_image

def peak():  # in MiB. Not `ru_maxrss`, which a process inherits from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

Image.init()
data = Path(sys.argv[1]).read_bytes()
before = peak()
try:
    decode_image(data)
    print("decoded")
except ImageRejected as reason:
    print(reason)
print(peak() - before)
"""


def deflated(size: int, value: bytes = b"\x50") -> bytes:
    """Compress a number of equal bytes. Blocks that are flushed can be repeated, which saves most of the time."""
    block, checksum = value * (1 << 20), 1
    compressor = zlib.compressobj()
    first = compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)
    again = compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)
    blocks, rest = divmod(size, len(block))
    for _ in range(blocks):
        checksum = zlib.adler32(block, checksum)
    checksum = zlib.adler32(block[:rest], checksum)
    raw = zlib.compressobj(wbits=-15)
    last = raw.compress(block[:rest]) + raw.flush()
    start = first + again * (blocks - 1) if blocks else b"\x78\x9c"
    return start + last + struct.pack(">I", checksum)


def png(side: int, depth: int, colour: int, samples: int, *, interlaced: bool = False) -> bytes:
    """Build a PNG of equal pixels, without filters."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    bits = depth * samples
    sizes = [
        (-(-(side - x) // dx), -(-(side - y) // dy)) for x, y, dx, dy in (passes if interlaced else [(0, 0, 1, 1)])
    ]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, interlaced))
    pixels = deflated(sum(height * (1 + -(-width * bits // 8)) for width, height in sizes), b"\0")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(side: int, bits: int, samples: int, photometric: int, *, sample_format: int = 1) -> bytes:
    """Build a deflated TIFF of equal pixels in one strip."""
    pixels = deflated(side**2 * samples * bits // 8)
    tags = {256: side, 257: side, 259: 8, 262: photometric, 273: 8, 277: samples, 278: side, 279: len(pixels)}
    tags[339] = sample_format
    if samples == 4 and photometric == 2:
        tags[338] = 2
    depths = struct.pack(f"<{samples}H", *[bits] * samples).ljust(4, b"\0")
    where = depths if samples < 3 else struct.pack("<I", 8 + len(pixels))
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    entries[258] = struct.pack("<HHI", 258, 3, samples) + where
    listed = b"".join(entry for _, entry in sorted(entries.items()))
    directory = struct.pack("<H", len(entries)) + listed + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels) + len(depths)) + pixels + depths + directory


def filled(mode: str) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), (9, 9, 9, 9))


BOMBS: dict[str, Callable[[], bytes]] = {
    "16-bit grey PNG": lambda: png(SIDE, 16, 0, 1),
    "16-bit RGBA PNG, interlaced": lambda: png(SIDE, 16, 6, 4, interlaced=True),
    "RGBA PNG": lambda: png(SIDE, 8, 6, 4),
    "16-bit RGBA TIFF in one strip": lambda: tiff(SIDE, 16, 4, 2),
    "CMYK TIFF in one strip": lambda: tiff(SIDE, 8, 4, 5),
    "float TIFF": lambda: tiff(SIDE, 32, 1, 1, sample_format=3),
    "int32 TIFF": lambda: tiff(SIDE, 32, 1, 1, sample_format=2),
    "lossless WebP with alpha": lambda: encode(filled("RGBA"), "WEBP", lossless=True, quality=0, method=0),
    "progressive CMYK JPEG": lambda: encode(filled("CMYK"), "JPEG", progressive=True, subsampling=0),
    "JPEG of 196 megapixels": lambda: encode(Image.new("L", (14_000, 14_000)), "JPEG"),
    "JPEG 2000 with alpha": lambda: encode(Image.new("RGBA", (5_600, 5_600)), "JPEG2000"),
    "AVIF with alpha": lambda: encode(filled("RGBA"), "AVIF", speed=10),
    "GIF with a large screen": lambda: encode(Image.new("P", (SIDE, SIDE)), "GIF", transparency=0),
    "PNG with texts of half a gigabyte": lambda: insert(
        png(28, 8, 0, 1),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + deflated(1 << 28)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + deflated(1 << 28)),
    ),
}  # fmt: skip


@needs(Path("/proc/self/status").exists(), "peak memory is read from Linux's /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_one_image_takes_bounded_memory(name: str, tmp_path: Path):
    (tmp_path / "bomb").write_bytes(BOMBS[name]())
    child = [sys.executable, "-c", CODE, str(tmp_path / "bomb")]
    result, mebibytes = subprocess.run(
        child, capture_output=True, text=True, check=True, timeout=300
    ).stdout.splitlines()
    assert result == "decoded" or result.split(":")[0] in ("too large", "unsupported")
    assert int(mebibytes) < MEBIBYTES


def test_tiff_with_millions_of_strips_is_too_large():
    many = struct.pack("<HHII", 273, 4, 3_000_000, 8)
    assert reason(b"II*\0" + struct.pack("<IH", 8, 1) + many + bytes(4)).startswith("too large: ")


def test_tiff_with_a_large_tile_is_too_large():
    tags = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (322, 1 << 15), (323, 1 << 15), (324, 8), (325, 9)]
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    assert reason(b"II*\0" + struct.pack("<IH", 8, len(tags)) + listed + bytes(4)).startswith("too large: ")


def test_jpeg_2000_whose_codestream_is_larger_than_it_says_is_too_large():
    data = bytearray(encode(Image.new("RGB", (28, 28)), "JPEG2000"))
    struct.pack_into(">II", data, data.index(b"\xff\x4f\xff\x51") + 8, 1 << 16, 1 << 16)
    assert reason(bytes(data)).startswith("too large: ")


def test_photo_of_50_megapixels_is_decoded():
    assert reason(encode(Image.new("RGB", (8_192, 6_144), (90, 80, 70)), "JPEG")) == "decoded"
