"""Image files into model input: one transform, the same in training and in classification.

Orientation as EXIF says; alpha composited over black; grey by ITU-R 601-2 luma; then, unless it has that size already,
resized to 28x28 by antialiased bilinear interpolation (aspect ratio not kept), as torchvision's `Resize` does.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES, IMAGE_SIZE
from fmnist_model.errors import InvalidDataset

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Names of image files end so, in either case."""

IMAGE_COLUMN, LABEL_COLUMN = "image", "label"
"""Names of the columns in Parquet files of images; the labels may be missing."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows many more, some of them by running other programs (EPS: Ghostscript)."""

_MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: 64 megapixels in RGB are 192 MB."""


@dataclass(frozen=True)
class DecodedImages:
    """Images that could be decoded, and the reasons for those that could not."""

    pixels: NDArray[np.uint8]
    """`[n, 28, 28]`, 0 black to 255 white, one slot a decodable row, in input order."""
    rows: NDArray[np.int64]
    """`[n]`, the input row of each slot."""
    rejected: list[tuple[int, str]]
    """Input row and reason of each of the others."""


def decode_images(encoded: pa.Array) -> DecodedImages:
    """Decode a column of images into model input.

    Args:
        encoded: `struct<bytes: binary, path: string>` or binary, one image file a row (PNG, JPEG, WebP, GIF's first
            frame, BMP or TIFF, of any size and mode); or `fixed_size_binary[784]`, raw pixels.

    Returns:
        The images, and for each row that is none a reason: `len(pixels) + len(rejected) == len(encoded)`.

    Raises:
        InvalidDataset: the column's type is none of these.
    """
    if not holds_images(encoded.type):
        raise InvalidDataset(
            f"a column of type {encoded.type} holds no images: expected image files (binary, or struct with a field "
            f"'bytes') or raw pixels (fixed_size_binary[{IMAGE_SIZE**2}])."
        )
    if pa.types.is_struct(encoded.type):
        encoded = encoded.flatten()[encoded.type.get_field_index("bytes")]  # with the struct's nulls, unlike field()
    if pa.types.is_fixed_size_binary(encoded.type):
        return _raw_pixels(encoded)
    pixels = np.empty((len(encoded), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    rows: list[int] = []
    rejected: list[tuple[int, str]] = []
    for row, value in enumerate(encoded):
        if not value.is_valid:
            rejected.append((row, "missing: the image is null"))
            continue
        try:
            pixels[len(rows)] = decode_image(value.as_py())
        except ImageRejected as reason:
            rejected.append((row, str(reason)))
        else:
            rows.append(row)
    return DecodedImages(pixels[: len(rows)], np.array(rows, np.int64), rejected)


def _raw_pixels(column: pa.FixedSizeBinaryArray) -> DecodedImages:
    valid = np.asarray(column.is_valid())
    data = np.frombuffer(column.buffers()[1], np.uint8) if len(column) else np.empty(0, np.uint8)
    size = IMAGE_SIZE**2
    pixels = data[column.offset * size : (column.offset + len(column)) * size].reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    rows = np.flatnonzero(valid)
    rejected = [(int(row), "missing: the image is null") for row in np.flatnonzero(~valid)]
    return DecodedImages(pixels if not rejected else pixels[rows], rows, rejected)


class ImageRejected(Exception):
    """An image can't be classified; the text begins with the kind of reason."""


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode one image file into uint8 `[28, 28]`.

    Raises:
        ImageRejected: it is no image, truncated, or larger than 64 megapixels.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageRejected("not an image: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused or tolerated below
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise ImageRejected(f"too large: {picture.width} x {picture.height} pixels")
                if picture.mode == "L" and picture.size == (IMAGE_SIZE, IMAGE_SIZE) and not picture.info:
                    return np.asarray(picture)
                return np.asarray(_to_model_input(picture))
    except Image.DecompressionBombError:
        raise ImageRejected("too large: a decompression bomb") from None
    except UnidentifiedImageError:
        raise ImageRejected("not an image: no known format") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError, IndexError, TypeError) as error:
        kind = "truncated" if "truncated" in str(error) else "damaged"
        raise ImageRejected(f"{kind}: {error}") from None


def _to_model_input(picture: "Image") -> "Image":
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        # 16 bits to 8 by the high byte: Pillow's own conversion clips at 255 instead.
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    grey = picture.convert("L")
    if grey.size != (IMAGE_SIZE, IMAGE_SIZE):
        grey = grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return grey


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode one grey image, uint8 `[height, width]`, as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def holds_images(kind: pa.DataType) -> bool:
    """Whether `decode_images` takes a column of this type."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    raw = pa.types.is_fixed_size_binary(kind) and kind.byte_width == IMAGE_SIZE**2
    return bool(raw or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken for an image when a folder is classified."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def huggingface_schema() -> pa.Schema:
    """The Arrow schema of an image classification data set as Hugging Face's `datasets` reads and writes it.

    Source: https://huggingface.co/docs/datasets/image_dataset (Image and ClassLabel features in Parquet).
    """
    import json

    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"},
    }
    return pa.schema(
        [
            pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
            pa.field("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
