"""Input files: list them by path, folder, glob or URI, and read them by canonical URI (see `uris`).

A file's fingerprint changes when the file does.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.errors import RequestError
from infra.storage.input_files import local, s3
from infra.storage.input_files.interface import (
    CHANGED,
    FOLDER,
    MACHINE_FAILURES,
    NOT_THERE,
    VANISHED,
    InputFile,
    InputNotFound,
    InputsUnavailable,
    InputUnreadable,
    first_with_files,
)
from infra.storage.input_files.local import local_fingerprint
from infra.storage.input_files.passed_over import PassOver, ignore
from infra.storage.input_files.s3 import s3_fingerprint
from infra.storage.uris import bucket_and_key, local_path, possible_uris

__all__ = [
    "CHANGED",
    "FOLDER",
    "NOT_THERE",
    "VANISHED",
    "InputFile",
    "InputNotFound",
    "InputUnreadable",
    "InputsUnavailable",
    "can_be_read",
    "list_input_files",
    "local_fingerprint",
    "open_input",
    "read_input",
    "s3_fingerprint",
    "stat_input",
]


def list_input_files(location: str, pass_over: PassOver = ignore) -> Iterator[InputFile]:
    """List the files that a path or URI names: a file, a folder with all files below it, or a glob.

    Globs use `*`, `?`, `[…]` and `**`. Folders and globs pass over hidden files and folders, whose names start with
    `.`, and folders of metadata such as `_delta_log`. Other names with `_` are listed, because cameras make such names.
    Entries of a folder that can't be used are passed over, too, and don't stop the others. Files are streamed as they
    are listed, on S3 in the order of their keys. A folder on S3 is a prefix that ends with a slash. A file that two
    links lead to is listed twice, with the same URI.

    Args:
        location: path or URI, as described in `uris.canonical_uri`. If it can stand for two names and no file has the
            first, the second is tried.
        pass_over: called for each file or folder that is passed over, with its kind (see `passed_over`) and its path
            or URI. A folder that isn't entered counts as one.

    Raises:
        InputNotFound: the file or folder doesn't exist.
        InputsUnavailable: S3 or this machine fails.
        RequestError: the location itself can't be read, the glob is invalid, or the location's name isn't UTF-8.
    """
    if not location:
        raise InputNotFound("An input is empty. Name a file, a folder or a glob.")
    with _clear_errors(location):
        uris = possible_uris(location)
        if _is_on_s3(uris[0]):
            yield from first_with_files(s3.list_files(location, *bucket_and_key(uri), pass_over) for uri in uris)
        else:
            yield from local.list_files(location, [local_path(uri) for uri in uris], pass_over)


def stat_input(uri: str) -> InputFile | None:
    """Look up a file by its canonical URI, or return None if it doesn't exist.

    Raises:
        InputUnreadable: permission is denied, the URI is malformed, or it names a folder or another thing than a file.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    return s3.stat_file(uri) if _is_on_s3(uri) else local.stat_file(uri)


def read_input(uri: str, fingerprint: str, largest: int) -> bytes:
    """Read a listed file as a whole.

    Args:
        uri: canonical URI of the file.
        fingerprint: the listed fingerprint.
        largest: maximum size in bytes.

    Raises:
        InputUnreadable: the file is gone, changed or too large, or permission is denied.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    read = s3.read_file if _is_on_s3(uri) else local.read_file
    return read(uri, fingerprint, largest)


def open_input(uri: str, *, fetch: int = 0) -> Any:
    """Open a file as a random-access `pyarrow.NativeFile`.

    A file on S3 raises `InputUnreadable` from a read if it is refused, gone or changed since it was opened. Its
    attribute `failure` keeps the error, because pyarrow may turn it into one of its own.

    Args:
        uri: canonical URI of the file.
        fetch: size in bytes up to which a file on S3 is fetched in one request.

    Raises:
        InputUnreadable: the file is gone or not a regular file, or permission is denied.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    return s3.open_file(uri, fetch) if _is_on_s3(uri) else local.open_file(uri)


def can_be_read(uri: str) -> bool:
    """Return whether the first byte of a file can be read. This also shows archived objects and missing permissions.

    Args:
        uri: canonical URI of the file.

    Raises:
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    try:
        with open_input(uri) as file:
            file.read(1)
    except InputUnreadable:
        return False
    return True


def _is_on_s3(uri: str) -> bool:
    return uri[:5].lower() == "s3://"


@contextmanager
def _clear_errors(location: str) -> Iterator[None]:
    try:
        yield
    except RequestError:  # it is a ValueError, too
        raise
    except UnicodeDecodeError as error:
        raise RequestError(f"{location} has a name that isn't UTF-8: {error.object!r}. Rename it.") from None
    except (OSError, ValueError, re.error) as error:  # ValueError: a name with a NUL, or a glob like `a**b`
        failure = InputsUnavailable if getattr(error, "errno", None) in MACHINE_FAILURES else RequestError
        raise failure(f"{location} can't be listed: {error}.") from None
