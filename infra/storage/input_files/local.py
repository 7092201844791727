"""Input files in folders of this machine."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.errors import RequestError
from infra.storage.input_files.interface import (
    DENIED,
    FOLDER,
    GLOB_SIGN,
    MACHINE_FAILURES,
    VANISHED,
    InputFile,
    InputNotFound,
    InputsUnavailable,
    InputUnreadable,
    check_version,
    first_with_files,
)
from infra.storage.input_files.local_folder import Glob, walk
from infra.storage.input_files.passed_over import PassOver
from infra.storage.uris import local_path, percent_decode, percent_encode, possible_uris, real_folder


def list_files(location: str, paths: list[str], pass_over: PassOver) -> Iterator[InputFile]:
    """List the files that a location names. The paths are its meanings, see `input_files.list_input_files`."""
    named = next(filter(os.path.lexists, paths), None)
    if named is None and GLOB_SIGN.search(location):
        yield from first_with_files(_list_folder(location, *glob, pass_over) for glob in _local_globs(location))
        return
    path = named or paths[0]
    if Path(path).is_file():
        yield _local_file(path, Path(path).stat())
        return
    yield from _list_folder(location, path, "**", pass_over)


def _local_globs(location: str) -> list[tuple[str, str]]:
    """Return the folder to search and the pattern below it, for each meaning of a glob."""
    start = GLOB_SIGN.split(location, maxsplit=1)[0].rfind("/") + 1
    folders = [local_path(uri) for uri in possible_uris(location[:start] or ".")]
    patterns = [location[start:]]
    if location[:7].lower() == "file://":
        patterns.insert(0, percent_decode(location[start:]))
    return list(dict.fromkeys([(folders[0], patterns[0]), (folders[-1], patterns[-1])]))


def _list_folder(location: str, folder: str, pattern: str, pass_over: PassOver) -> Iterator[InputFile]:
    """List the files below a folder that match a pattern."""
    if not Path(folder).is_dir():
        raise InputNotFound(f"{location}: no such file or folder.")
    for path, status in walk(real_folder(folder), Glob(pattern), pass_over):
        yield _local_file(path, status)


def _local_file(path: str, found: os.stat_result) -> InputFile:
    os.fsencode(path).decode()  # raises if the name isn't UTF-8, and so can't be a URI
    return InputFile(f"file://{percent_encode(path)}", found.st_size, local_fingerprint(found))


def local_fingerprint(found: os.stat_result) -> str:
    """Identify the version of a local file by its size and the time of its last change."""
    return f"{found.st_size:x}-{found.st_mtime_ns:x}"


def stat_file(uri: str) -> InputFile | None:
    """Look up a file, see `input_files.stat_input`."""
    path = _local_path(uri)
    try:
        with _clear_errors(uri):
            found = Path(path).stat()
            _check_regular(found)
            return _local_file(path, found)
    except InputUnreadable as reason:
        if str(reason).startswith("vanished"):
            return None
        raise


def read_file(uri: str, fingerprint: str, largest: int) -> bytes:
    """Read a file, see `input_files.read_input`."""
    path = _local_path(uri)
    with _clear_errors(uri):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block
        try:
            found = os.fstat(descriptor)
            _check_regular(found)
            check_version(local_fingerprint(found), fingerprint, found.st_size, largest)
            return os.read(descriptor, found.st_size)
        finally:
            os.close(descriptor)


def open_file(uri: str) -> Any:
    """Open a file, see `input_files.open_input`."""
    from pyarrow import fs

    path = _local_path(uri)
    with _clear_errors(uri):
        _check_regular(Path(path).stat())
        return fs.LocalFileSystem().open_input_file(path)


def _check_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InputUnreadable(FOLDER)
    if not stat.S_ISREG(found.st_mode):
        raise InputUnreadable("unreadable: not a regular file")


@contextmanager
def _clear_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise InputUnreadable(VANISHED) from None
    except PermissionError:
        raise InputUnreadable(DENIED) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        if getattr(error, "errno", None) in MACHINE_FAILURES:
            raise InputsUnavailable(f"{uri} can't be read: {error}.") from None
        raise InputUnreadable(f"unreadable: {getattr(error, 'strerror', None) or error}") from None


def _local_path(uri: str) -> str:
    try:
        return local_path(uri)
    except RequestError as error:
        raise InputUnreadable(f"unreadable: {error}") from None
