"""Files to read, by URI: what a path, folder, glob or URI names, each with a fingerprint that changes when it does."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    # Unlike Path.expanduser, this leaves a name that begins with '~' and is no user's as it is.
    return "file://" + str(Path(os.path.expanduser(location)).absolute())  # noqa: PTH111


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The `pyarrow.fs.FileSystem` and the path in it of a URI.

    Raises:
        RequestError: the URI's scheme is none that can be read, or it names another host.
    """
    from pyarrow import fs

    scheme, _, rest = uri.partition("://")
    if scheme.lower() == "file":
        # The path is taken as it is written: names may hold spaces, '%', '#' and '?', and are not percent-encoded.
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise RequestError(f"{uri} names the host {host}: a file URI has three slashes, file:///{rest}")
        return fs.LocalFileSystem(), f"/{path}"
    raise RequestError(f"{uri}: only file:// URIs and local paths can be read.")


def list_input_files(location: str) -> Iterator[InputFile]:
    """List the files that a path or URI names: a file, a folder with all below it, or a glob (`*`, `?`, `[…]`, `**`).

    Hidden files and folders (names that begin with `.` or `_`) are passed over, in folders and globs.

    Raises:
        InputNotFound: there is no such file or folder.
        RequestError: it can't be listed: no rights, an invalid glob, a name that is not UTF-8.
    """
    from pyarrow import fs

    if not location:
        raise InputNotFound("An input is empty: name a file, a folder or a glob.")
    uri = input_uri(location)
    filesystem, path = filesystem_of(uri)
    pattern = None
    base = path
    with _clear_errors(location):
        if re.search(r"[*?\[]", path) and filesystem.get_file_info(path).type == fs.FileType.NotFound:
            pattern = re.compile(glob_translate(path))
            base = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0] or "/"
        info = filesystem.get_file_info(base)
    if info.type == fs.FileType.File and pattern is None:
        yield _input_file(info)
        return
    if info.type != fs.FileType.Directory:
        raise InputNotFound(f"{location}: there is no such file or folder.")
    with _clear_errors(location):
        selected = sorted(filesystem.get_file_info(fs.FileSelector(base, recursive=True)), key=lambda entry: entry.path)
    for found in selected:
        inside = found.path[len(base) :].strip("/")
        hidden = any(part.startswith((".", "_")) for part in inside.split("/"))
        if found.type == fs.FileType.File and not hidden and (pattern is None or pattern.fullmatch(found.path)):
            yield _input_file(found)


@contextmanager
def _clear_errors(location: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise RequestError(f"{location} holds a file whose name is not UTF-8: {error.object!r}. Rename it.") from None
    except (OSError, ValueError, re.error) as error:  # ValueError: a name with a NUL, or a glob like `a**b`
        raise RequestError(f"{location} can't be listed: {error}.") from None


def _input_file(info: Any) -> InputFile:
    return InputFile(uri=f"file://{info.path}", size=info.size, fingerprint=f"{info.size:x}-{info.mtime_ns:x}")
