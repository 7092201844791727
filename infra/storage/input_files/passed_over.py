"""What a listing passes over: the kinds, and which folders and keys they apply to."""

from collections.abc import Callable

HIDDEN_FILE = "hidden file"
HIDDEN_FOLDER = "hidden folder"
METADATA_FOLDER = "metadata folder"
UNREADABLE_FILE = "unreadable file"
UNREADABLE_FOLDER = "unreadable folder"
BROKEN_LINK = "broken link"
LOOPING_LINK = "looping link"
NOT_UTF8 = "name not in UTF-8"
SPECIAL_FILE = "special file"
FOLDER_MARKER = "folder marker"
OBJECT_LIKE_A_FOLDER = "object named like a folder"

PassOver = Callable[[str, str], None]
"""Counts a file or folder that a listing passes over. Takes its kind, and its path or URI."""

_METADATA_FOLDERS = frozenset(
    {
        "_change_data",
        "_delta_index",
        "_delta_log",
        "_metadata",
        "_spark_metadata",
        "_symlink_format_manifest",
        "_temporary",
        "__macosx",
        "__pycache__",
    }
)
"""Folders of Delta, Spark and others, in lower case. Any other name with `_` can be a person's choice of name."""


def ignore(kind: str, example: str) -> None:
    """Count nothing."""


def folder_kind(name: str) -> str | None:
    """Return the kind of a folder that isn't entered because of its name, or None."""
    if name.startswith("."):
        return HIDDEN_FOLDER
    return METADATA_FOLDER if name.lower() in _METADATA_FOLDERS else None


def object_kind(key: str, size: int) -> tuple[str, str] | None:
    """Return why an object is passed over because of its key, and the part of the key that is to blame, or None.

    Args:
        key: key below the listed prefix.
        size: size of the object in bytes.
    """
    folders, _, name = key.rpartition("/")
    position = 0
    for folder in folders.split("/"):
        position += len(folder) + 1
        if kind := folder_kind(folder):
            return kind, key[:position]
    if not name:
        return (OBJECT_LIKE_A_FOLDER if size else FOLDER_MARKER), key
    if name.endswith("_$folder$"):  # Hadoop's way to mark a folder
        return FOLDER_MARKER, key
    return (HIDDEN_FILE, key) if name.startswith(".") else None
