"""Build small image files by hand, of kinds that Pillow doesn't write."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmnist_model.images.decode import ImageRejected, decode_image

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
"""Brightness that rises from left to right, uint8 `[64, 256]`."""


def encode(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return smooth colours with noise, which compress like a photo."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), 3)
    return Image.fromarray((np.asarray(smooth) + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8))


def reason(data: bytes) -> str:
    """Return why a file is rejected, or `decoded`."""
    try:
        decode_image(data)
    except ImageRejected as rejection:
        return str(rejection)
    return "decoded"


def chunk(name: bytes, body: bytes) -> bytes:
    """Build a PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def insert(png: bytes, *chunks: bytes) -> bytes:
    """Insert chunks after a PNG's header."""
    return png[:33] + b"".join(chunks) + png[33:]


def deep_png(samples: NDArray[Any], colour: int, *before: bytes) -> bytes:
    """Build a PNG of 16 bits per sample, `[height, width]` or `[height, width, samples]`."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(samples: NDArray[Any], **other: int) -> bytes:
    """Build an uncompressed grey TIFF in the byte order of the samples. Other tags are named `t` and their number."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    kinds = {"u": 1, "i": 2, "f": 3}
    height, width = samples.shape
    body = samples.tobytes()
    tags = {
        256: width,
        257: height,
        258: 8 * samples.dtype.itemsize,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: height,
        279: len(body),
        339: kinds[samples.dtype.kind],
    } | {int(name[1:]): value for name, value in other.items()}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return start + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
