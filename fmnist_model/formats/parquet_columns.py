"""Find the columns of images and labels in a Parquet file, and bring each type of column into a form to decode."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fmnist_model.errors import InvalidDataset, NoImages
from fmnist_model.formats.labels import class_names_of, describe_columns, find_label_column, first_named, parse_labels
from fmnist_model.images.decode import holds_images

IMAGE_COLUMNS = (
    *("image", "images", "img", "image_bytes", "img_bytes", "image_data", "png", "jpg", "jpeg", "webp"),
    *("bytes", "pixels", "content", "data"),
)
"""Default names of the column with the images, in order of preference. Matching ignores case."""

_UNSPECIFIC_NAMES = frozenset({"bytes", "content", "data"})
"""Default names that say little, so the values have to look like images too."""

_SMALLEST_KNOWN_BYTES = 4
"""Size from which a value's start tells what it is."""

_IMAGE_STARTS = (
    *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF"),
    *(b"\0\0\0\x0cJXL ", b"\xff\x0a", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\1\0", b"8BPS", b"P5\n", b"P6\n"),
)

Sample = Callable[[str], pa.Array | None]
"""Returns a few values of a column, or None if they can't be read."""


@dataclass(frozen=True)
class Columns:
    """Columns to read."""

    image: str
    label: str | None
    class_names: tuple[object, ...] | None
    """Class names in the file's own order, if it records them."""
    kind: pa.DataType
    """Type of the image column."""
    origin: str
    """URI of the file."""

    @property
    def selected(self) -> list[str]:
        """Columns and fields to read. Of a struct, only the bytes and the path are read."""
        kind = _storage(self.kind)
        if pa.types.is_struct(kind):
            images = [f"{self.image}.{name}" for name in ("bytes", "path") if kind.get_field_index(name) >= 0]
        else:
            images = [self.image]
        return [*images, self.label] if self.label is not None else images

    @property
    def encoded_type(self) -> pa.DataType:
        """Type of the images for the decoder."""
        return _encoded_type(self.kind)

    @property
    def has_fixed_size(self) -> bool:
        """Whether all images have the same size."""
        return bool(pa.types.is_fixed_size_binary(self.encoded_type))

    def selects(self, path: Sequence[str]) -> bool:
        """Return whether a leaf column is read."""
        name, field = path[0], path[1] if len(path) > 1 else ""
        if name == self.image and pa.types.is_struct(_storage(self.kind)):
            return field in ("bytes", "path")
        return name in (self.image, self.label)

    def split(self, rows: pa.RecordBatch, largest: int) -> Iterator[pa.RecordBatch]:
        """Cut rows into parts, each with one image or up to `largest` bytes of images after `take`.

        Only a dictionary of images can have more, because rows share its values.
        """
        images = rows.column(self.image)
        if not pa.types.is_dictionary(images.type) or not _is_binary(images.type.value_type):
            yield rows
            return
        sizes = pc.binary_length(images.dictionary).take(images.indices).fill_null(0).to_numpy(zero_copy_only=False)
        start = 0
        while start < len(rows):
            fitting = int(np.searchsorted(np.cumsum(sizes[start:], dtype=np.int64), largest, side="right"))
            yield rows.slice(start, max(1, fitting))
            start += max(1, fitting)

    def take(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns `image`, `label` and `path` of some rows. A path is null if there is an image."""
        images, paths = _images_and_paths(rows.column(self.image))
        if self.label is None:
            labels = pa.nulls(len(rows), pa.int16())
        else:
            labels = parse_labels(rows.column(self.label), names=self.class_names, origin=self.origin)
        return pa.record_batch([images, labels, paths], names=["image", "label", "path"])


def find_columns(
    schema: pa.Schema, image_column: str | None, label_column: str | None, origin: str, sample: Sample
) -> Columns:
    """Find the columns to read.

    Args:
        schema: columns of the file.
        image_column: name of the column with the images, or None to find it.
        label_column: name of the column with the labels, or None to find it.
        origin: URI of the file, for error messages.
        sample: returns some values of a column.

    Raises:
        NoImages: no column holds images.
        InvalidDataset: a named column is missing, or several columns hold images and none has a default name.
    """
    image = find_image_column(schema, image_column, origin, sample)
    others = pa.schema([field for field in schema if field.name != image], metadata=schema.metadata)
    label = find_label_column(others, label_column, origin)
    return Columns(image, label, class_names_of(schema, label), schema.field(image).type, origin)


def find_image_column(schema: pa.Schema, image_column: str | None, origin: str, sample: Sample) -> str:
    """Find the column with the images, see `find_columns`.

    A column that doesn't have a specific default name must also hold values that look like images. Otherwise hashes
    and embeddings would be taken for images.
    """
    candidates = [field.name for field in schema if schema.names.count(field.name) == 1 and _can_hold_images(field)]
    if image_column is not None and image_column in candidates:
        return image_column
    specific = [name for name in IMAGE_COLUMNS if name not in _UNSPECIFIC_NAMES]
    if image_column is None and (found := first_named(candidates, specific)):
        return found
    looks = {name: _look_like_images(schema.field(name).type, sample(name)) for name in candidates}
    candidates = [name for name in candidates if looks[name] is not False]
    if image_column is not None:
        problem = f"needs exactly one column '{image_column}' of image files or raw pixels"
    elif found := first_named(candidates, IMAGE_COLUMNS):
        return found
    else:
        sure = [name for name in candidates if looks[name]] or candidates
        if len(sure) == 1:
            return str(sure[0])
        problem = f"has several columns that can hold images ({', '.join(sure)}). Name one with --image-column"
    if candidates:
        raise InvalidDataset(f"{origin} {problem}. Its columns are: {describe_columns(schema)}.")
    raise NoImages(f"{origin} has no column of image files or raw pixels. Its columns are: {describe_columns(schema)}.")


def _can_hold_images(field: pa.Field) -> bool:
    return holds_images(_encoded_type(field.type))


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _encoded_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's images after `_plain`."""
    kind = _storage(kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_type)
    return kind


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _images_and_paths(column: pa.Array) -> tuple[pa.Array, pa.StringArray]:
    paths = pa.nulls(len(column), pa.string())
    column = _plain(column)
    if not pa.types.is_struct(column.type):
        return column, paths
    fields = column.flatten()  # unlike field(), it applies the struct's nulls
    images = _plain(fields[column.type.get_field_index("bytes")])
    if images.null_count and column.type.get_field_index("path") >= 0:
        found = fields[column.type.get_field_index("path")]
        text = found.dictionary_decode() if pa.types.is_dictionary(found.type) else found
        paths = pc.if_else(images.is_null(), text.cast(pa.string()), pa.scalar(None, pa.string()))
    return images, paths


def _plain(column: pa.Array) -> pa.Array:
    """Return a column in a type that the decoder takes."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = _encoded_type(column.type)
    return column if pa.types.is_struct(column.type) or kind == column.type else column.cast(kind)


def _look_like_images(kind: pa.DataType, values: pa.Array | None) -> bool | None:
    """Return whether some values look like images, or None if they don't tell."""
    kind = _storage(kind)
    encoded_type = _encoded_type(kind)
    if pa.types.is_struct(kind) or pa.types.is_fixed_size_binary(encoded_type):
        return True
    if pa.types.is_fixed_size_list(encoded_type):
        return True
    if values is None:
        return None
    images, _ = _images_and_paths(values)
    found: list[Any] = [value for value in images.to_pylist() if value]
    if pa.types.is_list(encoded_type) or pa.types.is_large_list(encoded_type):
        return any(len(value) == 28 * 28 for value in found) if found else None
    telling = [value for value in found if len(value) >= _SMALLEST_KNOWN_BYTES]
    return any(map(looks_like_an_image, telling)) if telling else None


def looks_like_an_image(data: bytes) -> bool:
    """Return whether data starts as a file of a known image format does, also one that can't be decoded."""
    return data.startswith(_IMAGE_STARTS) or data[4:8] == b"ftyp"
