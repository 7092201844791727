"""Parse true classes in users' files: numbers, texts of numbers or class names, in any spelling."""

import json
import logging
import re
from collections.abc import Sequence
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.errors import InvalidDataset

LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
"""Default names of the column with the labels, in order of preference. Matching ignores case."""

_SHORT_NAMES = {"tshirt": 0, "top": 0}
"""Parts of `T-shirt/top` that stand for it."""

_MISSING_TEXTS = frozenset({"", "?", "-1", "-1.0", "n/a", "na", "nan", "<na>", "none", "null"})
"""Texts that stand for a missing label, in lower case."""

_UNKNOWN = -1
"""Stands for a value that names no class."""

_MAX_LABEL_BYTES = 1000
"""Bytes of a text to look at."""

_MAX_REPORTED = 10_000
"""Maximum number of files to remember, so that each file's unknown labels are logged only once."""

_reported: set[str] = set()
_log = logging.getLogger(__name__)


def parse_label(value: object, names: Sequence[object] | None = None) -> int | None:
    """Return the class that a value stands for, 0 to 9, or None for any other value.

    A label is a number (`3`, `3.0`), a text of one (`"3"`, `" 3.0 "`), or a class name. Case, spaces and punctuation in
    names don't matter: `ankle_boot` is `Ankle boot`. A text can also be bytes in UTF-8.

    Args:
        value: the label as a Python object.
        names: the file's own class names. If given, the number `i` stands for `names[i]`.
    """
    found = _class_of(value, names)
    return None if found == _UNKNOWN else found


def parse_labels(
    column: pa.Array, *, names: Sequence[object] | None = None, origin: str | None = None
) -> pa.Int16Array:
    """Apply `parse_label` to a column, with null for values that aren't labels.

    Args:
        column: labels, `[n]`, of a type that `holds_labels` accepts.
        names: see `parse_label`.
        origin: URI of the file. If given, `report_unknown_label` logs the first value that names no class.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.int16())
    if not pa.types.is_dictionary(column.type):
        column = _with_simple_type(column).dictionary_encode()
    values = _short(column.dictionary).to_pylist()
    classes = [_class_of(value, names) for value in values]
    if origin is not None and _UNKNOWN in classes:
        report_unknown_label(origin, values[classes.index(_UNKNOWN)])
    return pa.array([None if found == _UNKNOWN else found for found in classes], pa.int16()).take(column.indices)


def is_unknown_label(value: object) -> bool:
    """Return whether a value is present but names no class. None, NaN, `""` and -1 stand for a missing label."""
    return _class_of(value, None) == _UNKNOWN


def report_unknown_label(origin: str, value: object) -> None:
    """Log that a file has a label that names no class, once per file and process."""
    if origin in _reported:
        return
    if len(_reported) >= _MAX_REPORTED:
        _reported.clear()
    _reported.add(origin)
    _log.warning(
        "%s has labels that name no class, such as %s. They count as unknown. Labels are 0 to %d, or %s.",
        origin,
        f"{_shown(value)!r:.80}",
        len(CLASS_NAMES) - 1,
        ", ".join(CLASS_NAMES),
    )


def _shown(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def find_label_column(schema: pa.Schema, label_column: str | None, origin: str) -> str | None:
    """Find the column with the labels.

    Args:
        schema: columns of the file.
        label_column: name of the column, or None to try `LABEL_COLUMNS`.
        origin: URI of the file, for error messages.

    Returns:
        The column's name, or None if no column was named and none was found.

    Raises:
        InvalidDataset: the named column is missing, ambiguous, or of a type that can't hold labels.
    """
    if label_column is None:
        candidates = [field.name for field in schema if _is_label_column(schema, field.name)]
        return first_named(candidates, LABEL_COLUMNS)
    if not _is_label_column(schema, label_column):
        raise InvalidDataset(
            f"{origin} needs exactly one column '{label_column}' of numbers or class names. Its columns are: "
            f"{describe_columns(schema)}."
        )
    return label_column


def first_named(candidates: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the candidate that has the first of several lower-case names, or None. Case matters only for ties."""
    for name in names:
        matches = [candidate for candidate in candidates if candidate.lower() == name]
        if matches:
            return name if name in matches else matches[0]
    return None


def class_names_of(schema: pa.Schema, label_column: str | None) -> tuple[object, ...] | None:
    """Return the class names that Hugging Face's `datasets` recorded for a column of numbers, or None without them.

    Source: https://huggingface.co/docs/datasets/about_dataset_features (ClassLabel, in the metadata of the schema).
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(names) if isinstance(names, list) and names else None


def describe_columns(schema: pa.Schema) -> str:
    """List the columns and their types for an error message."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"


def holds_labels(kind: pa.DataType) -> bool:
    """Return whether `parse_labels` accepts a column of this type.

    Booleans aren't labels: two values can't name ten classes.
    """
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(numbers or pa.types.is_null(kind) or holds_text(kind) or _holds_bytes(kind))


def holds_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    variable = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(variable or pa.types.is_fixed_size_binary(kind))


def _is_label_column(schema: pa.Schema, name: str) -> bool:
    return bool(schema.names.count(name) == 1 and holds_labels(schema.field(name).type))


def _with_simple_type(column: pa.Array) -> pa.Array:
    """Cast a column to a type that Arrow can encode as a dictionary."""
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(column.type):
        return column.cast(pa.large_binary())
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    return column


def _short(values: pa.Array) -> pa.Array:
    """Cut texts after more bytes than a label has, so that huge values aren't converted."""
    if not holds_text(values.type) and not _holds_bytes(values.type):
        return values
    return pc.binary_slice(values.cast(pa.large_binary()), 0, _MAX_LABEL_BYTES)


def _class_of(value: object, names: Sequence[object] | None) -> int | None:
    """Return the class that a value stands for, None if it is missing, or `_UNKNOWN`."""
    if isinstance(value, bytes):
        value = value.rstrip(b"\0").decode("utf-8", "replace")
    if isinstance(value, str):
        return _class_of_text(value, names)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return _UNKNOWN
    if value != value or value == -1:  # noqa: PLR0124 (NaN is the only number that differs from itself)
        return None
    if not 0 <= value < (len(CLASS_NAMES) if names is None else len(names)) or value != int(value):
        return _UNKNOWN
    return int(value) if names is None else _class_of(names[int(value)], None)


def _class_of_text(text: str, names: Sequence[object] | None) -> int | None:
    text = text.strip()
    if text.lower() in _MISSING_TEXTS:
        return None
    if _NUMBER.fullmatch(text):
        return _class_of(float(text), names)
    return _CLASSES.get(_letters(text), _UNKNOWN)


_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?", re.ASCII)


def _letters(name: str) -> str:
    """Return a name without case, spaces and punctuation."""
    return "".join(filter(str.isalnum, name.casefold()))


_CLASSES = {_letters(name): number for number, name in enumerate(CLASS_NAMES)} | _SHORT_NAMES
