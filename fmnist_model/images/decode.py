"""Image files into model input: one transform, the same in training and in classification.

Orientation as EXIF says; alpha composited over black; grey by ITU-R 601-2 luma; then, unless it has that size already,
resized to 28x28 by antialiased bilinear interpolation (aspect ratio not kept), as torchvision's `Resize` does.
"""

import io
import logging
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES, IMAGE_SIZE
from fmnist_model.errors import InvalidDataset, describe_unexpected, one_line

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Names of image files end so, in either case."""

IMAGE_COLUMN, LABEL_COLUMN = "image", "label"
"""Names of the columns in Parquet files of images; the labels may be missing."""

Invert = Literal["auto", "always", "never"]
"""Which images are turned into their negative, since the model knows light things on dark ground alone.

`auto`: those whose four corner pixels, of the 28x28, are brighter than 127.5 on average: dark on light. Of
Fashion-MNIST's 70,000 images it inverts none, and of their negatives it leaves none (the brightest average is 58);
with each cropped to the thing it shows, it inverts 8 and leaves 6.
"""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows many more, some of them by running other programs (EPS: Ghostscript)."""

_MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: 64 megapixels in RGB are 192 MB."""

_PIXELS = IMAGE_SIZE**2

_MISSING = "missing: the image is null"

_ORIENTATION_TAG = 0x0112

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImages:
    """Images that could be decoded, and the reasons for those that could not."""

    pixels: NDArray[np.uint8]
    """`[n, 28, 28]`, 0 black to 255 white, one slot a decodable row, in input order."""
    rows: NDArray[np.int64]
    """`[n]`, the input row of each slot."""
    rejected: list[tuple[int, str]]
    """Input row and reason of each of the others."""


def decode_images(encoded: pa.Array, *, invert: Invert = "never") -> DecodedImages:
    """Decode a column of images into model input.

    Args:
        encoded: image files, one a row (PNG, JPEG, WebP, GIF's first frame, BMP or TIFF, of any size and mode), as
            `struct<bytes: binary, path: string>`, binary or large_binary; or raw pixels, 784 a row, as
            fixed_size_binary, or as fixed_size_list, list or large_list of uint8, in a struct's `bytes` or not.
        invert: which images are turned into their negative.

    Returns:
        The images, and for each row that is none a reason: `len(pixels) + len(rejected) == len(encoded)`.

    Raises:
        InvalidDataset: the column's type is none of these.
    """
    if not holds_images(encoded.type):
        raise InvalidDataset(
            f"a column of type {encoded.type} holds no images: expected image files (binary, or struct with a field "
            f"'bytes') or raw pixels (fixed_size_binary[{_PIXELS}], or lists of {_PIXELS} uint8)."
        )
    if pa.types.is_struct(encoded.type):
        encoded = encoded.flatten()[encoded.type.get_field_index("bytes")]  # with the struct's nulls, unlike field()
    files = pa.types.is_binary(encoded.type) or pa.types.is_large_binary(encoded.type)
    decoded = _decode_files(encoded) if files else _take_raw_pixels(encoded)
    return replace(decoded, pixels=_invert(decoded.pixels, invert))


def _decode_files(files: pa.Array) -> DecodedImages:
    pixels = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    rejected: list[tuple[int, str]] = []
    for row in np.flatnonzero(~_decode_plain_pngs(files, pixels)).tolist():
        value = files[row]
        if not value.is_valid:
            rejected.append((row, _MISSING))
            continue
        try:
            pixels[row] = decode_image(value.as_py())
        except ImageRejected as reason:
            rejected.append((row, str(reason)))
        except Exception as error:  # noqa: BLE001 (one image must not stop the others)
            rejected.append((row, describe_unexpected(error)))
    if not rejected:
        return DecodedImages(pixels, np.arange(len(files)), rejected)
    rows = np.delete(np.arange(len(files)), [row for row, _ in rejected])
    return DecodedImages(pixels[rows], rows, rejected)


def _decode_plain_pngs(files: pa.Array, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Decode the plain PNG files together. If that fails, leave every file to be decoded on its own."""
    from fmnist_model.images.png import decode_plain_pngs

    try:
        return decode_plain_pngs(files, pixels)
    except Exception as error:  # noqa: BLE001 (one image must not stop the others)
        _log.warning("Decoding %s images one by one, which is slower: %s.", len(files), describe_unexpected(error))
        return np.zeros(len(files), np.bool_)


def _take_raw_pixels(column: pa.Array) -> DecodedImages:
    """Take the pixels where they lie in the column; they are copied only if rows between them are rejected."""
    raw = _raw_values(column)
    reasons = {row: f"damaged: {raw.nulls[row]} of its pixels are null" for row in np.flatnonzero(raw.nulls).tolist()}
    for row in np.flatnonzero(raw.lengths != _PIXELS).tolist():
        reasons[row] = f"not an image: {raw.lengths[row]} pixels instead of {_PIXELS} ({IMAGE_SIZE} x {IMAGE_SIZE})"
    reasons |= dict.fromkeys(np.flatnonzero(~np.asarray(column.is_valid())).tolist(), _MISSING)
    rows = np.delete(np.arange(len(column)), list(reasons))
    begins = raw.begins[rows]
    if not len(rows):
        pixels = np.empty((0, _PIXELS), np.uint8)
    elif (np.diff(begins) == _PIXELS).all():
        pixels = raw.values[begins[0] : begins[-1] + _PIXELS]
    else:
        pixels = sliding_window_view(raw.values, _PIXELS)[begins]
    return DecodedImages(pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE), rows, sorted(reasons.items()))


@dataclass(frozen=True)
class _RawValues:
    """A column of raw pixels."""

    values: NDArray[np.uint8]
    """Of all rows, and perhaps of others: nulls as 0."""
    begins: NDArray[np.int64]
    """`[n]`, where in the values each row begins."""
    lengths: NDArray[np.int64]
    """`[n]`, how many are each row's."""
    nulls: NDArray[np.int64]
    """`[n]`, how many of these are null."""


def _raw_values(column: pa.Array) -> _RawValues:
    offsets = (column.offset + np.arange(len(column) + 1)) * _PIXELS
    nulls = np.zeros(len(column), np.int64)
    if pa.types.is_fixed_size_binary(column.type):
        return _RawValues(np.frombuffer(column.buffers()[1] or b"", np.uint8), offsets[:-1], np.diff(offsets), nulls)
    values = column.values  # of the whole array that the column is a slice of
    if not pa.types.is_fixed_size_list(column.type):
        offsets = column.offsets.to_numpy().astype(np.int64)
    if values.null_count:
        nulls = np.diff(np.concatenate([[0], np.cumsum(values.is_null())])[offsets])
        values = values.fill_null(0)
    return _RawValues(np.asarray(values), offsets[:-1], np.diff(offsets), nulls)


def _invert(pixels: NDArray[np.uint8], invert: Invert) -> NDArray[np.uint8]:
    """Turn images, `[..., 28, 28]`, into their negatives where they are to be."""
    match invert:
        case "never":
            return pixels
        case "always":
            return ~pixels
        case "auto":
            corners = [pixels[..., row, column].astype(np.int64) for row in (0, -1) for column in (0, -1)]
            dark_on_light = np.asarray(sum(corners) > 4 * 255 / 2)
            if not dark_on_light.any():
                return pixels
            inverted: NDArray[np.uint8] = pixels ^ np.multiply(dark_on_light, 255, dtype=np.uint8)[..., None, None]
            return inverted


class ImageRejected(Exception):
    """An image can't be classified; the text begins with the kind of reason."""


def decode_image(data: bytes, *, invert: Invert = "never") -> NDArray[np.uint8]:
    """Decode one image file into uint8 `[28, 28]`, as `decode_images` does.

    Raises:
        ImageRejected: it is not an image, is truncated, is larger than 64 megapixels, or fails to decode in any other
            way. The reason names the class of an unexpected exception.
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
                plain = picture.mode == "L" and picture.size == (IMAGE_SIZE, IMAGE_SIZE) and not picture.info
                pixels = np.asarray(picture if plain else _to_model_input(picture))
    except Image.DecompressionBombError:
        raise ImageRejected("too large: a decompression bomb") from None
    except UnidentifiedImageError:
        raise ImageRejected("not an image: no known format") from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, IndexError, TypeError) as error:
        kind = "truncated" if "truncated" in str(error) else "damaged"
        raise ImageRejected(f"{kind}: {one_line(error)}") from None
    except ImageRejected:
        raise
    except Exception as error:  # noqa: BLE001 (a damaged file makes decoders raise many kinds of exception)
        raise ImageRejected(describe_unexpected(error)) from None
    return _invert(pixels, invert)


def _to_model_input(picture: "Image") -> "Image":
    from PIL import Image

    picture = _turn_upright(picture)
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


def _turn_upright(picture: "Image") -> "Image":
    """Transpose a picture as its orientation says.

    `ImageOps.exif_transpose` also writes the other EXIF tags again, and fails if one has a value of the wrong type.
    """
    if not isinstance(picture.info.get("xmp", b""), bytes):
        del picture.info["xmp"]  # Pillow searches XMP for the orientation, and can't load a TIFF if it isn't bytes
    picture.load()  # transposes a TIFF and removes its orientation
    method = _transposition(picture)
    return picture if method is None else picture.transpose(method)


def _transposition(picture: "Image") -> "Transpose | None":
    """Read how to turn a picture upright: `None` if it is upright, or if its orientation is unreadable or unknown."""
    from PIL.Image import Transpose

    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return methods.get(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 (damaged EXIF makes Pillow's parser raise many kinds of exception)
        return None


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
    if pa.types.is_fixed_size_binary(kind):
        return bool(kind.byte_width == _PIXELS)
    if pa.types.is_fixed_size_list(kind):
        return bool(kind.list_size == _PIXELS and pa.types.is_uint8(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_uint8(kind.value_type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken for an image when a folder is classified."""
    stem, dot, ending = name.rpartition(".")  # pathlib takes ten times as long, which tells in listings of millions
    return dot + ending.lower() in IMAGE_SUFFIXES and stem[-1:] not in ("", "/")


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
