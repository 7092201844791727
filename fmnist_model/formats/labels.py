"""Parse true classes in users' files: numbers, strings of digits, or class names."""

import pyarrow as pa
import pyarrow.compute as pc

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.errors import InvalidDataset

LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
"""Default names of the column with the labels, in order of preference."""

_TEXTS = (*CLASS_NAMES, *(str(number) for number in range(len(CLASS_NAMES))))


def parse_label(value: object) -> int | None:
    """Return the class, 0 to 9, that a number, a digit or a class name stands for, or None for any other value."""
    if isinstance(value, str):
        text = value.strip()
        return _TEXTS.index(text) % len(CLASS_NAMES) if text in _TEXTS else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(CLASS_NAMES):
        return value
    return None


def parse_labels(column: pa.Array) -> pa.Int8Array:
    """Apply `parse_label` to a column, with null for values that aren't labels.

    Args:
        column: integers or strings, of a type that `holds_labels` accepts.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        first, last = (pa.scalar(number, column.type) for number in (0, len(CLASS_NAMES) - 1))
        known = pc.and_(pc.greater_equal(column, first), pc.less_equal(column, last))
        return pc.if_else(known, column, pa.scalar(None, column.type)).cast(pa.int8())
    texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
    numbers = pc.index_in(texts, value_set=pa.array(_TEXTS))
    names = pa.scalar(len(CLASS_NAMES), pa.int32())
    return pc.if_else(pc.less(numbers, names), numbers, pc.subtract(numbers, names)).cast(pa.int8())


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
        return next((name for name in LABEL_COLUMNS if _is_label_column(schema, name)), None)
    if not _is_label_column(schema, label_column):
        raise InvalidDataset(
            f"{origin} needs exactly one column '{label_column}' of integers or class names. Its columns are: "
            f"{describe_columns(schema)}."
        )
    return label_column


def describe_columns(schema: pa.Schema) -> str:
    """List the columns and their types for an error message."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"


def _is_label_column(schema: pa.Schema, name: str) -> bool:
    return bool(schema.names.count(name) == 1 and holds_labels(schema.field(name).type))


def holds_labels(kind: pa.DataType) -> bool:
    """Return whether `parse_labels` accepts a column of this type."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or holds_text(kind))


def holds_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
