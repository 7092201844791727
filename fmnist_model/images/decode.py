"""Decode image files into model input. Training and classification share this transform.

It turns the image upright according to EXIF, composites alpha over black, and converts to grey by ITU-R 601-2 luma. An
image of another size is resized to 28x28 by antialiased bilinear interpolation, like torchvision's `Resize`. The aspect
ratio is not preserved.
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

Invert = Literal["auto", "always", "never"]
"""Which images to replace by their negative, because the model knows only light objects on a dark background.

`auto` inverts an image if the mean of its four corner pixels at 28x28 is above 127.5. It inverts none of the 70,000
images of Fashion-MNIST, where the highest mean is 58, and all of their negatives. If the images are cropped to the
object, it wrongly inverts 8 images and misses 6 negatives.
"""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats to decode. Pillow supports many more, but runs other programs for some, such as Ghostscript for EPS."""

_MAX_PIXELS = 64_000_000
"""Maximum number of pixels to decode. 64 megapixels take 192 MB in RGB."""

_PIXELS = IMAGE_SIZE**2
"""Number of pixels per image in the model's input."""

_MISSING = "missing: the image is null"

_ORIENTATION_TAG = 0x0112
"""EXIF tag of the orientation, 1 to 8."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images, and the reasons for those that could not be decoded."""

    pixels: NDArray[np.uint8]
    """`[n, 28, 28]`, 0 black to 255 white, the decodable images in input order."""
    rows: NDArray[np.int64]
    """`[n]`, input row of each decoded image."""
    rejected: list[tuple[int, str]]
    """Input row and reason of each rejected image."""


def decode_images(encoded: pa.Array, *, invert: Invert = "never") -> DecodedImages:
    """Decode a column of images into model input.

    Args:
        encoded: `[n]`, one image per row. Image files (PNG, JPEG, WebP, BMP, TIFF or the first frame of a GIF, of any
            size and mode) are binary or large_binary. Raw pixels, 784 per image, are fixed_size_binary, or
            fixed_size_list, list or large_list of uint8. Each type can also be the field `bytes` of a struct.
        invert: which images to replace by their negative.

    Returns:
        The decoded images, and a reason for each other row: `len(pixels) + len(rejected) == n`.

    Raises:
        InvalidDataset: the column is of another type.
    """
    if not holds_images(encoded.type):
        raise InvalidDataset(
            f"A column of type {encoded.type} can't hold images. Expected image files (binary, or a struct with a "
            f"field 'bytes') or raw pixels (fixed_size_binary[{_PIXELS}], or lists of {_PIXELS} uint8)."
        )
    if pa.types.is_struct(encoded.type):
        encoded = encoded.flatten()[encoded.type.get_field_index("bytes")]  # field() would ignore the struct's nulls
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
    """Return a view of the pixels in the column. They are copied only if rows between them are rejected."""
    raw = _raw_values(column)
    reasons = {row: f"damaged: {raw.nulls[row]} of its pixels are null" for row in np.flatnonzero(raw.nulls).tolist()}
    for row in np.flatnonzero(raw.lengths != _PIXELS).tolist():
        reasons[row] = f"not an image: {raw.lengths[row]} pixels instead of {_PIXELS} ({IMAGE_SIZE} x {IMAGE_SIZE})"
    reasons |= dict.fromkeys(np.flatnonzero(~np.asarray(column.is_valid())).tolist(), _MISSING)
    rows = np.delete(np.arange(len(column)), list(reasons))
    starts = raw.starts[rows]
    if not len(rows):
        pixels = np.empty((0, _PIXELS), np.uint8)
    elif (np.diff(starts) == _PIXELS).all():
        pixels = raw.values[starts[0] : starts[-1] + _PIXELS]
    else:
        pixels = sliding_window_view(raw.values, _PIXELS)[starts]
    return DecodedImages(pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE), rows, sorted(reasons.items()))


@dataclass(frozen=True)
class _RawValues:
    """A column of raw pixels as flat arrays."""

    values: NDArray[np.uint8]
    """Pixels of all rows, with nulls as 0. Rows outside the column's slice may be included."""
    starts: NDArray[np.int64]
    """`[n]`, index in `values` of each row's first pixel."""
    lengths: NDArray[np.int64]
    """`[n]`, number of pixels in each row."""
    nulls: NDArray[np.int64]
    """`[n]`, number of null pixels in each row."""


def _raw_values(column: pa.Array) -> _RawValues:
    offsets = (column.offset + np.arange(len(column) + 1)) * _PIXELS
    nulls = np.zeros(len(column), np.int64)
    if pa.types.is_fixed_size_binary(column.type):
        return _RawValues(np.frombuffer(column.buffers()[1] or b"", np.uint8), offsets[:-1], np.diff(offsets), nulls)
    values = column.values  # values of the whole array, of which the column may be a slice
    if not pa.types.is_fixed_size_list(column.type):
        offsets = column.offsets.to_numpy().astype(np.int64)
    if values.null_count:
        nulls = np.diff(np.concatenate([[0], np.cumsum(values.is_null())])[offsets])
        values = values.fill_null(0)
    return _RawValues(np.asarray(values), offsets[:-1], np.diff(offsets), nulls)


def _invert(pixels: NDArray[np.uint8], invert: Invert) -> NDArray[np.uint8]:
    """Replace the images that `invert` selects, of uint8 `[..., 28, 28]`, by their negatives."""
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
    """An image can't be decoded. The message is the reason for quarantine, such as `truncated: …`."""


def decode_image(data: bytes, *, invert: Invert = "never") -> NDArray[np.uint8]:
    """Decode one image file into uint8 `[28, 28]`, 0 black to 255 white.

    Args:
        data: bytes of a file in a format that `decode_images` accepts.
        invert: whether to replace the image by its negative.

    Raises:
        ImageRejected: the file is not an image, is truncated, is larger than 64 megapixels, or fails to decode in any
            other way. The reason names the class of an unexpected exception.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageRejected("not an image: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about files that are rejected or tolerated below
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
        # Keep the high byte of 16-bit pixels. Pillow's own conversion clips at 255 instead.
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    grey = picture.convert("L")
    if grey.size != (IMAGE_SIZE, IMAGE_SIZE):
        grey = grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return grey


def _turn_upright(picture: "Image") -> "Image":
    """Transpose a picture according to its orientation.

    `ImageOps.exif_transpose` also writes the other EXIF tags again, and fails if one has a value of the wrong type.
    """
    if not isinstance(picture.info.get("xmp", b""), bytes):
        del picture.info["xmp"]  # Pillow searches XMP for the orientation, and can't load a TIFF if it isn't bytes
    picture.load()  # transposes a TIFF and removes its orientation
    method = _transposition(picture)
    return picture if method is None else picture.transpose(method)


def _transposition(picture: "Image") -> "Transpose | None":
    """Return the transposition that turns a picture upright.

    It is None if the picture is upright, or if its orientation is unreadable or unknown.
    """
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
    """Return whether `decode_images` accepts a column of this type."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_fixed_size_binary(kind):
        return bool(kind.byte_width == _PIXELS)
    if pa.types.is_fixed_size_list(kind):
        return bool(kind.list_size == _PIXELS and pa.types.is_uint8(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_uint8(kind.value_type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def huggingface_schema() -> pa.Schema:
    """Return the Arrow schema that Hugging Face's `datasets` uses for image classification datasets.

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
