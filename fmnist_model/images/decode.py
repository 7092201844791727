"""Decode image files into model input. Training and classification share this transform.

Its version is `fmnist_model.images.TRANSFORM_VERSION`. The rules:

1. The content of a file decides about its format, not its name. `files/content.py` lists the formats.
2. The first frame counts. Metadata is ignored, except for the orientation, in EXIF or else in XMP.
3. A file with small flaws is decoded if all its pixels are there. One whose pixels are cut is rejected as truncated.
4. Pictures with more than 8 bits per pixel are brought to 8 bits, or rejected, as `deep_pixels.py` says.
5. Alpha is composited over black. Colours become grey by ITU-R 601-2 luma. Colour profiles are ignored.
6. A JPEG of at least 224 x 224 pixels is scaled by libjpeg while it decodes, to no less than 112 x 112.
7. A picture of another size is resized to 28x28 by antialiased bilinear interpolation, like torchvision's `Resize`. The
   aspect ratio is not preserved.
8. The picture is turned upright.

So a grey picture with 8 bits and 28x28 pixels is the model's input as it is.
"""

import io
import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES, IMAGE_SIZE
from fmnist_model.errors import InvalidDataset, describe_unexpected
from fmnist_model.images.decoded import MISSING, DecodedImages
from fmnist_model.images.deep_pixels import strips_of, to_eight_bits
from fmnist_model.images.files import load_picture
from fmnist_model.images.orientation import turn_upright
from fmnist_model.images.raw_pixels import take_raw_pixels
from fmnist_model.images.rejected import ImageRejected, reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

Invert = Literal["auto", "always", "never"]
"""Which images to replace by their negative, because the model knows only light objects on a dark background.

`auto` inverts an image if the mean of its four corner pixels at 28x28 is above 127.5. It inverts none of the 70,000
images of Fashion-MNIST, where the highest mean is 58, and all of their negatives. If the images are cropped to the
object, it wrongly inverts 8 images and misses 6 negatives.
"""

_PIXELS = 64_000_000
"""Maximum number of pixels to decode. 64 megapixels take 192 MB in RGB."""

_PIXELS = IMAGE_SIZE**2
"""Number of pixels per image in the model's input."""

_log = logging.getLogger(__name__)


def decode_images(encoded: pa.Array, *, invert: Invert = "never") -> DecodedImages:
    """Decode a column of images into model input.

    Args:
        encoded: `[n]`, one image per row. Image files (of the formats in `files/content.py`, of any size and mode) are
            binary or large_binary. Raw pixels, 784 per image, are fixed_size_binary, or
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
    decoded = _decode_files(encoded) if files else take_raw_pixels(encoded)
    return replace(decoded, pixels=_invert(decoded.pixels, invert))


def _decode_files(files: pa.Array) -> DecodedImages:
    pixels = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    rejected: list[tuple[int, str]] = []
    for row in np.flatnonzero(~_decode_plain_pngs(files, pixels)).tolist():
        value = files[row]
        if not value.is_valid:
            rejected.append((row, MISSING))
            continue
        try:
            pixels[row] = decode_image(value.as_py())
        except ImageRejected as reason:
            rejected.append((row, str(reason)))
        except Exception as error:  # noqa: BLE001 (one image must not stop the others)
            rejected.append((row, reason_of(error)))
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


def decode_image(data: bytes, *, invert: Invert = "never") -> NDArray[np.uint8]:
    """Decode one image file into uint8 `[28, 28]`, 0 black to 255 white.

    Args:
        data: bytes of a file in a format that `decode_images` accepts.
        invert: whether to replace the image by its negative.

    Raises:
        ImageRejected: the file is not an image, is truncated, is larger than 64 megapixels (256 if it is a JPEG with
            one scan), or fails to decode in any other way. The reason names the class of an unexpected exception.
    """
    if not data:
        raise ImageRejected("not an image: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about files that are rejected or tolerated anyway
            return _invert(_decode(data), invert)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 (some extensions raise more than Exception, such as pyo3's panics)
        raise ImageRejected(reason_of(error)) from None


def _decode(data: bytes) -> NDArray[np.uint8]:
    with load_picture(data) as loaded:
        picture = to_eight_bits(loaded)
        plain = picture.mode == "L" and picture.size == (IMAGE_SIZE, IMAGE_SIZE) and not picture.has_transparency_data
        if plain:
            pixels = np.asarray(picture)
        else:
            pixels = np.asarray(_to_model_input(picture, loaded.box) if loaded.box else _to_model_input(picture))
        return turn_upright(pixels, loaded.file.orientation)


def _to_model_input(picture: "Image", box: tuple[float, float, float, float] | None = None) -> "Image":
    from PIL import Image

    grey = _to_grey(picture)
    if grey.size != (IMAGE_SIZE, IMAGE_SIZE):
        grey = grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box)
    return grey


def _to_grey(picture: "Image") -> "Image":
    """Convert a picture with 8 bits per pixel or fewer to grey."""
    from PIL import Image

    if picture.mode == "LAB":
        raise ImageRejected("unsupported: CIELAB colours. Convert it to RGB.")
    if picture.mode == "L" and not picture.has_transparency_data:
        return picture
    grey = Image.new("L", picture.size)
    for top, strip in strips_of(picture):
        if strip.has_transparency_data:
            upper = strip.convert("LA" if strip.mode == "La" else "RGBA").convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "black"), upper)  # noqa: PLW2901
        grey.paste(strip.convert("L"), (0, top))
    return grey


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
