# ruff: noqa: D102 (ObjectStore says what its methods do)
"""Objects as files under a folder: `file://`.

A new file is written beside its place under a hidden name, synced, and then linked (create) or renamed (swap, publish)
into it: both are atomic, and a crash leaves a hidden file that no listing shows. `swap` holds an advisory lock, which
the system releases when its holder dies.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from infra.object_store.interface import (
    ObjectExists,
    ObjectNotFound,
    ObjectStat,
    ObjectStore,
    StoreUnavailable,
    SwapConflict,
    checked_key,
    checked_prefix,
    is_key,
)


class LocalObjectStore(ObjectStore):
    """An object store in a local folder, which need not exist yet."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._folder = Path(unquote(urlsplit(root).path))

    def check_writable(self) -> None:
        try:
            with self._scratch_file():
                pass
        except OSError as error:
            raise StoreUnavailable(
                f"The store {self.root} can't be written: {error.strerror or error}. "
                "Make the folder writable, or name another store with FMNIST_STORE."
            ) from error

    def check_conditional_writes(self) -> None:
        try:
            with self._scratch_file() as scratch:
                fcntl.flock(scratch, fcntl.LOCK_EX)
                link = Path(f"{scratch.name}.link")
                os.link(scratch.name, link)
                link.unlink()
        except OSError as error:
            raise StoreUnavailable(
                f"The store {self.root} can't be trusted with several writers: its file system has no hard links or no "
                f"locks ({error.strerror or error}). Name another store with FMNIST_STORE."
            ) from error

    def stat(self, key: str) -> ObjectStat | None:
        try:
            found = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectStat(key, found.st_size, _stat_etag(found)) if S_ISREG(found.st_mode) else None

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectNotFound(f"There is no {self.uri(key)}") from None

    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def create(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._new_file(path) as temporary:
            temporary.write(data)
            temporary.flush()
            os.fsync(temporary.fileno())
            try:
                os.link(temporary.name, path)
            except FileExistsError:
                raise ObjectExists(f"{self.uri(key)} exists already") from None
        _sync_folder(path.parent)

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        try:
            if seen is None:
                # Not under the lock, which `create` does not take: the link itself decides between the two.
                self.create(key, data)
            else:
                self._replace(key, data, seen)
        except (ObjectExists, ObjectNotFound):
            raise SwapConflict(f"{self.uri(key)} was changed by another process meanwhile") from None

    @contextmanager
    def publish(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with self._new_file(path) as temporary:
            yield temporary
            temporary.flush()
            os.fsync(temporary.fileno())
            Path(temporary.name).replace(path)
        _sync_folder(path.parent)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        yield from self._walk(self._prefix(prefix), prefix)

    def list_folders(self, prefix: str) -> Iterator[str]:
        folder = self._prefix(prefix)
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            names = sorted(f"{entry.name}/" for entry in entries if entry.is_dir(follow_symlinks=False))
            # Where a writer died, or all was deleted, there is a folder but no object, and so no folder to S3.
            yield from (name[:-1] for name in names if is_key(name[:-1]) and _holds_object(folder / name))

    def delete(self, key: str) -> None:
        path = self._path(key)
        if not path.is_dir():
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()

    def arrow(self, key: str) -> tuple[Any, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(self._path(key))

    def _replace(self, key: str, data: bytes, seen: str) -> None:
        path = self._path(key)
        if not path.is_file():
            raise ObjectNotFound(self.uri(key))
        # Neither truncated nor followed: where someone has put a link in its place, its target is left alone.
        lock_path = path.parent / f".{path.name}.lock"
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise StoreUnavailable(
                f"The store {self.root} can't be used: {lock_path} can't be opened ({error.strerror}). Remove it."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read_with_etag(key)[1] != seen:
                raise ObjectExists(self.uri(key))
            with self.publish(key) as stream:
                stream.write(data)
        finally:
            os.close(lock)

    def _path(self, key: str) -> Path:
        path = self._folder / checked_key(key)
        root = os.path.realpath(self._folder)
        if os.path.commonpath([root, os.path.realpath(path)]) != root:
            raise StoreUnavailable(f"{self.uri(key)} is, or lies behind, a link that leads out of the store.")
        return path

    def _prefix(self, prefix: str) -> Path:
        return self._path(checked_prefix(prefix).removesuffix("/")) if prefix else self._folder

    def _walk(self, folder: Path, prefix: str) -> Iterator[ObjectStat]:
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if is_key(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            return
        # A folder sorts as its objects do, that is with the slash: the order is then the one that S3 lists in.
        for entry in sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False)):
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                try:
                    found_stat = entry.stat()
                except FileNotFoundError:  # deleted since the folder was read
                    continue
                yield ObjectStat(prefix + entry.name, found_stat.st_size, _stat_etag(found_stat))

    def _scratch_file(self) -> AbstractContextManager[BinaryIO]:
        return self._new_file(self._folder / "scratch")

    @contextmanager
    def _new_file(self, path: Path) -> Iterator[BinaryIO]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{uuid4().hex}"
        try:
            with temporary.open("xb") as stream:
                yield stream
        finally:
            temporary.unlink(missing_ok=True)


def _holds_object(folder: Path) -> bool:
    """Whether there is an object in a folder or below."""
    folders = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if is_key(entry.name) and entry.is_file(follow_symlinks=False):
                return True
            if is_key(entry.name) and entry.is_dir(follow_symlinks=False):
                folders.append(folder / entry.name)
    return any(_holds_object(inner) for inner in folders)


def _stat_etag(found: os.stat_result) -> str:
    # The inode too: the clock of a file system ticks every few milliseconds, and each version is a file of its own.
    return f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
