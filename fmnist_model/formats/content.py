"""Tell what a file is that isn't what its name says."""

from typing import Any

_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file. Fetch the file with git lfs pull"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"PAR1", "a Parquet file"),
    (b"PARE", "an encrypted Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
)


def what_it_is(file: Any) -> str:
    """Return what a file is according to its first bytes, such as `it is a zip archive`, or an empty text.

    Args:
        file: random-access `pyarrow.NativeFile`.
    """
    try:
        start = file.read_at(64, 0)
    except Exception:  # noqa: BLE001 (this is about to be reported as another error)
        return ""
    return describe_start(start)


def describe_start(start: bytes) -> str:
    """Return what a file is whose first bytes are given, see `what_it_is`."""
    if not start:
        return "it is empty"
    if not start.strip(b"\0"):
        return "it starts with zeros"
    return next((f"it is {name}" for begin, name in _STARTS if start.startswith(begin)), "")
