"""Load the pixels of an image file, whatever else the file holds.

Pillow reads metadata when it opens a file, and refuses the file if it can't. It also limits texts and profiles. So each
file is first cut down to what is needed for its pixels. That needs one more copy of the file's bytes in memory.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final

from fmnist_model.classes import IMAGE_SIZE
from fmnist_model.images.files.avif import clean_avif
from fmnist_model.images.files.clean_file import MAX_PIXELS, CleanFile
from fmnist_model.images.files.content import identify
from fmnist_model.images.files.gif import clean_gif
from fmnist_model.images.files.jpeg import clean_jpeg
from fmnist_model.images.files.jpeg2000 import MAX_PIXELS as MAX_JPEG2000_PIXELS
from fmnist_model.images.files.jpeg2000 import clean_jpeg2000
from fmnist_model.images.files.png import clean_png
from fmnist_model.images.files.tiff import clean_tiff, silence_libtiff
from fmnist_model.images.files.webp import clean_webp
from fmnist_model.images.orientation import UPRIGHT, exif_orientation
from fmnist_model.images.rejected import ImageRejected

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


@dataclass(frozen=True)
class _Format:
    plugin: str
    """Module of Pillow."""
    reader: str
    """Class in the module."""
    clean: Callable[[bytes], CleanFile] = CleanFile
    max_pixels: int = MAX_PIXELS
    pixel_bytes: int = 6
    """Memory that decoding and converting takes, in bytes per pixel. Measured with 64 megapixels of each mode."""


_MAX_BYTES: Final = int(1.4 * 2**30)
"""Maximum memory for one image, in bytes."""

_FILE_COPIES: Final = 4
"""Copies of a file's bytes in memory: from the column, cut down, in Pillow and in the decoder."""

_FORMATS: Final = {
    "PNG": _Format("PngImagePlugin", "PngImageFile", clean_png),
    "JPEG": _Format("JpegImagePlugin", "JpegImageFile", clean_jpeg, 4 * MAX_PIXELS, 2),  # `clean_jpeg` checks it, too
    "WEBP": _Format("WebPImagePlugin", "WebPImageFile", clean_webp, pixel_bytes=16),
    "GIF": _Format("GifImagePlugin", "GifImageFile", clean_gif),
    "BMP": _Format("BmpImagePlugin", "BmpImageFile"),
    "TIFF": _Format("TiffImagePlugin", "TiffImageFile", clean_tiff, pixel_bytes=12),
    "AVIF": _Format("AvifImagePlugin", "AvifImageFile", clean_avif, pixel_bytes=20),
    "JPEG2000": _Format("Jpeg2KImagePlugin", "Jpeg2KImageFile", clean_jpeg2000, MAX_JPEG2000_PIXELS, 23),
    "PPM": _Format("PpmImagePlugin", "PpmImageFile"),
}

_DRAFT_SIZE: Final = 4 * IMAGE_SIZE
"""Width and height that libjpeg keeps at least when it scales while decoding.

Measured with smooth pictures with noise, quality 88: 1024x768 takes 3.1 ms instead of 5.2, 1600x1200 takes 6.3 instead
of 12.4, and 4000x3000 takes 37 instead of 76. The largest difference of a pixel in the model's input is 1 of 255.
"""

_TAILS: Final = (b"\xff\xd9", bytes((7 * n * n + 31 * n) % 251 for n in range(1, 8192)) + b"\xff\xd9")
"""Endings for a JPEG that has none: the marker alone, and after many other bytes, none of which is 0xFF."""


@dataclass(frozen=True)
class LoadedPicture:
    """The pixels of an image file as they are stored."""

    picture: "ImageFile"
    """Pillow's picture, of any size and mode."""
    format: str
    """Pillow's name of the format."""
    file: CleanFile
    box: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom of what the file shows, if the picture was scaled. The last column and row may lie
    partly outside, because libjpeg rounds up."""


@contextmanager
def load_picture(data: bytes) -> Iterator[LoadedPicture]:
    """Load the pixels of an image file until the block ends.

    A JPEG may be scaled down to no less than four times the model's size in both directions.

    Raises:
        ImageRejected: the file is not an image, or one that can't be decoded.
        Exception: anything that Pillow raises for damaged files. See `reason_of`.
    """
    name = identify(data)
    if _FILE_COPIES * len(data) > _MAX_BYTES:
        raise ImageRejected(f"too large: {len(data):,} bytes")
    file = _FORMATS[name].clean(data)
    with _open(name, file.data if file.has_end else _completed_jpeg(file.data)) as picture:
        box = None
        if name == "JPEG" and min(picture.size) >= 2 * _DRAFT_SIZE:
            drafted = picture.draft("L", (_DRAFT_SIZE, _DRAFT_SIZE))
            box = drafted[1] if drafted else None
        if name == "AVIF":  # Pillow states what the boxes `irot` and `imir` say as EXIF
            file = replace(file, orientation=exif_orientation(picture.info.get("exif", b"")) or UPRIGHT)
        try:
            picture.load()
        except (OSError, ValueError):
            if file.is_cut:
                raise ImageRejected("truncated: the file ends before its pixels do") from None
            raise
        yield LoadedPicture(picture, name, file, box)


def _open(name: str, data: bytes) -> "ImageFile":
    """Read the header of a file. `Image.open` would try other formats, and hide why the file can't be read."""
    file_format = _FORMATS[name]
    if name == "TIFF":
        silence_libtiff()
    reader = _reader(file_format.plugin, file_format.reader)
    if reader is None:
        raise ImageRejected(f"unsupported: {name}, which this version of Pillow can't decode")
    try:
        picture = reader(io.BytesIO(data))
    except SyntaxError as error:
        if name == "TIFF" and "unknown" in str(error):
            raise ImageRejected("unsupported: a TIFF whose kind of pixels Pillow can't read. Save it as PNG.") from None
        raise
    pixels = picture.width * picture.height
    memory = file_format.pixel_bytes * pixels + _FILE_COPIES * len(data)
    if pixels > file_format.max_pixels or memory > _MAX_BYTES:
        raise ImageRejected(f"too large: {picture.width} x {picture.height} pixels in {len(data):,} bytes")
    return picture


@cache
def _reader(plugin: str, name: str) -> "Callable[[io.BytesIO], ImageFile] | None":
    try:
        reader: Callable[[io.BytesIO], ImageFile] = getattr(import_module(f"PIL.{plugin}"), name)
    except (ImportError, AttributeError):
        return None
    return reader


def _completed_jpeg(data: bytes) -> bytes:
    """Add the missing end to a JPEG.

    If pixels are missing, libjpeg invents them without a word: it decodes whatever bytes follow, and then zeros. So the
    file is decoded twice, with different bytes after its own. If all pixels are there, these bytes have no effect.

    Raises:
        ImageRejected: the bytes have an effect.
    """
    data = _without_padding(data)
    first, second = (_decode_grey(data + tail) for tail in _TAILS)
    if first != second:
        raise ImageRejected("truncated: the file ends before its pixels do")
    return data + _TAILS[0]


def _without_padding(data: bytes) -> bytes:
    """Remove half a marker, and zeros after the pixels.

    Zeros are left by a download that was cut and whose space was reserved before. They would be decoded as pixels.
    """
    pixels = data.rstrip(b"\0")
    if not pixels.endswith(b"\xff"):
        return pixels
    return pixels.rstrip(b"\xff") if len(pixels) == len(data) else pixels + b"\0"  # 0xFF is stored with a zero after it


def _decode_grey(data: bytes) -> bytes:
    from hashlib import sha256

    with _open("JPEG", data) as picture:
        picture.draft("L", None)
        picture.load()
        digest = sha256()
        for top in range(0, picture.height, 256):
            digest.update(picture.crop((0, top, picture.width, min(top + 256, picture.height))).tobytes())
        return digest.digest()
