"""Files to read, by URI: what a path, folder, glob or URI names, each with a fingerprint that changes when it does."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec.utils import glob_translate

from infra.errors import RequestError


class InputNotFound(RequestError):
    """Nothing is there that could be read."""


@dataclass(frozen=True)
class InputFile:
    """A file that is to be read."""

    uri: str
    size: int
    """Bytes."""
    fingerprint: str
    """Size and time of the last change."""


def input_uri(location: str) -> str:
    """Turn what a person types into a URI: a path becomes `file:///…`, absolute; a URI is left as it is."""
    if "://" in location:
        return location
    return "file://" + str(Path(location).expanduser().absolute())


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The `pyarrow.fs.FileSystem` and the path in it of a URI.

    Raises:
        RequestError: the URI's scheme is none that can be read.
    """
    from pyarrow import fs

    parts = urlsplit(uri, allow_fragments=False)
    if parts.scheme == "file":
        # The path is taken as it is written: names may hold spaces, '%', '#' and '?', and are not percent-encoded.
        return fs.LocalFileSystem(), uri.removeprefix("file://")
    raise RequestError(f"{uri}: only file:// URIs and local paths can be read.")


def list_input_files(location: str) -> Iterator[InputFile]:
    """List the files that a path or URI names: a file, a folder with all below it, or a glob (`*`, `?`, `[…]`, `**`).

    Hidden files and folders (names that begin with `.` or `_`) are passed over, in folders and globs.

    Raises:
        InputNotFound: there is nothing.
    """
    from pyarrow import fs

    uri = input_uri(location)
    filesystem, path = filesystem_of(uri)
    pattern = None
    base = path
    if re.search(r"[*?\[]", path) and filesystem.get_file_info(path).type == fs.FileType.NotFound:
        pattern = re.compile(glob_translate(path))
        base = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0] or "/"
    info = filesystem.get_file_info(base)
    if info.type == fs.FileType.File:
        yield _input_file(info)
        return
    if info.type != fs.FileType.Directory:
        raise InputNotFound(f"{location}: there is no such file or folder.")
    selected = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    for found in sorted(selected, key=lambda entry: entry.path):
        inside = found.path[len(base) :].strip("/")
        hidden = any(part.startswith((".", "_")) for part in inside.split("/"))
        if found.type == fs.FileType.File and not hidden and (pattern is None or pattern.fullmatch(found.path)):
            yield _input_file(found)


def _input_file(info: Any) -> InputFile:
    return InputFile(uri=f"file://{info.path}", size=info.size, fingerprint=f"{info.size:x}-{info.mtime_ns:x}")
