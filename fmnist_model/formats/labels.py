"""True classes as other people write them down: numbers, digits in a text, or names of the classes."""

import pyarrow as pa
import pyarrow.compute as pc

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.errors import InvalidDataset

LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
"""A column of such a name holds the labels, where the caller names none."""

_TEXTS = (*CLASS_NAMES, *(str(number) for number in range(len(CLASS_NAMES))))


def label_of(value: object) -> int | None:
    """The class that a value names: 0 to 9, those digits, or a class's name. None where it names none."""
    if isinstance(value, str):
        text = value.strip()
        return _TEXTS.index(text) % len(CLASS_NAMES) if text in _TEXTS else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(CLASS_NAMES):
        return value
    return None


def label_array(column: pa.Array) -> pa.Int8Array:
    """The classes that a column's values name, null where they name none.

    Args:
        column: of a type that `holds_labels` accepts.
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
    """The name of the column with the labels: the one that the caller names, or else the first of `LABEL_COLUMNS`.

    Raises:
        InvalidDataset: the named column is missing, or holds no labels.
    """
    if label_column is None:
        return next((name for name in LABEL_COLUMNS if _is_label_column(schema, name)), None)
    if not _is_label_column(schema, label_column):
        raise InvalidDataset(
            f"{origin} needs one column '{label_column}' with labels (whole numbers, or names of classes); "
            f"its columns are: {describe_columns(schema)}."
        )
    return label_column


def describe_columns(schema: pa.Schema) -> str:
    """Columns with their types, for messages."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"


def _is_label_column(schema: pa.Schema, name: str) -> bool:
    return bool(schema.names.count(name) == 1 and holds_labels(schema.field(name).type))


def holds_labels(kind: pa.DataType) -> bool:
    """Whether `label_array` takes a column of this type."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or holds_text(kind))


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
