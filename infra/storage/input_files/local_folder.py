"""Walk through a local folder. An entry that can't be used is counted, and doesn't stop the others."""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fsspec.utils import glob_translate

from infra.storage.input_files.interface import MACHINE_FAILURES
from infra.storage.input_files.passed_over import (
    BROKEN_LINK,
    HIDDEN_FILE,
    LOOPING_LINK,
    NOT_UTF8,
    SPECIAL_FILE,
    UNREADABLE_FILE,
    UNREADABLE_FOLDER,
    PassOver,
    folder_kind,
)
from infra.storage.uris import real_folder


class Glob:
    """Select files of a folder. Paths are relative to the folder, as the links in it name them. `**` selects all."""

    def __init__(self, pattern: str) -> None:
        parts = os.path.normpath(pattern).split("/")
        self._any_depth = "**" in parts
        fixed = parts[: parts.index("**") if self._any_depth else -1]
        self._folders = [_compile("/".join(fixed[: depth + 1])) for depth in range(len(fixed))]
        self._file = None if parts == ["**"] else _compile("/".join(parts))

    def has_file(self, path: str) -> bool:
        """Return whether to list a file."""
        return self._file is None or self._file.fullmatch(path) is not None

    def reaches(self, path: str) -> bool:
        """Return whether a folder can hold files to list, if the folder above can."""
        depth = path.count("/")
        if depth < len(self._folders):
            return self._folders[depth].fullmatch(path) is not None
        return self._any_depth


class FoundFile(NamedTuple):
    """A regular file below a folder."""

    path: str
    """Absolute path, in which no folder is a link."""
    status: os.stat_result


@dataclass
class _OpenFolder:
    """A folder whose files are listed, while its subfolders are."""

    path: str
    inside: str
    """Path in the listed folder as the links name it. Empty, or with a slash at the end."""
    identity: tuple[int, int]
    """Device and inode."""
    subfolders: list[tuple[str, bool]] = field(default_factory=list)
    """Names of the subfolders to list, and whether each is a link."""


def walk(folder: str, selection: Glob, pass_over: PassOver) -> Iterator[FoundFile]:
    """List the files below a folder: first its own, then those of its subfolders.

    Links are followed, except to a folder that holds them. One folder is open at a time, so that neither the depth nor
    the number of files is limited. Files and folders that are deleted meanwhile are left out.

    Args:
        folder: path of the folder without symbolic links.
        selection: which files to list.
        pass_over: called for each selected entry that can't be used.

    Raises:
        OSError: the folder itself can't be read, or the machine fails.
    """
    os.scandir(folder).close()
    branch: list[_OpenFolder] = []
    yield from _open(folder, "", branch, selection, pass_over)
    while branch:
        above = branch[-1]
        if not above.subfolders:
            branch.pop()
            continue
        name, is_link = above.subfolders.pop()
        path = f"{above.path.rstrip('/')}/{name}"
        below = real_folder(path) if is_link else path
        yield from _open(below, f"{above.inside}{name}/", branch, selection, pass_over)


def _open(
    path: str, inside: str, branch: list[_OpenFolder], selection: Glob, pass_over: PassOver
) -> Iterator[FoundFile]:
    """List the files of a folder, and append the folder with its subfolders to the branch."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path for each of a million folders takes memory and time)
        opened = _OpenFolder(path, inside, (found.st_dev, found.st_ino))
        if any(above.identity == opened.identity for above in branch):
            pass_over(LOOPING_LINK, path)
            return
        branch.append(opened)
        with os.scandir(path) as entries:
            for entry in entries:
                if file := _inspect(entry, opened, selection, pass_over):
                    yield file
    except (FileNotFoundError, NotADirectoryError):  # deleted or replaced meanwhile
        return
    except OSError as error:
        if error.errno in MACHINE_FAILURES:
            raise
        pass_over(UNREADABLE_FOLDER, path)


def _inspect(entry: "os.DirEntry[str]", folder: _OpenFolder, selection: Glob, pass_over: PassOver) -> FoundFile | None:
    """Return the entry if it is a file to list. Otherwise remember it as a subfolder, or pass it over."""
    inside = f"{folder.inside}{entry.name}"
    try:
        if entry.is_dir():
            if selection.reaches(inside) and (kind := _add_subfolder(entry, folder)):
                pass_over(kind, entry.path)
            return None
        if not selection.has_file(inside):
            return None
        kind = _file_kind(entry)
        if kind is None:
            return FoundFile(entry.path, entry.stat())
    except FileNotFoundError:  # deleted meanwhile
        return None
    except OSError as error:
        if error.errno in MACHINE_FAILURES:
            raise
        if not selection.has_file(inside):
            return None
        kind = LOOPING_LINK if error.errno == errno.ELOOP else UNREADABLE_FILE
    pass_over(kind, entry.path)
    return None


def _add_subfolder(entry: "os.DirEntry[str]", folder: _OpenFolder) -> str | None:
    """Remember a subfolder to list, or return why it is passed over."""
    if kind := folder_kind(entry.name) or _name_kind(entry.name):
        return kind
    folder.subfolders.append((entry.name, entry.is_symlink()))
    return None


def _file_kind(entry: "os.DirEntry[str]") -> str | None:
    """Return why an entry that isn't a folder is passed over, or None."""
    if entry.name.startswith("."):
        return HIDDEN_FILE
    if kind := _name_kind(entry.name):
        return kind
    if entry.is_file():
        return None
    if not entry.is_symlink():
        return SPECIAL_FILE
    return SPECIAL_FILE if os.path.exists(entry.path) else BROKEN_LINK  # noqa: PTH110 (as above)


def _name_kind(name: str) -> str | None:
    """Return the kind of a name that can't be part of a URI, or None."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    return None


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(glob_translate(pattern))
