"""Objects as files under a folder: `file://`.

A new file is written beside its place under a hidden name, synced, and then linked (create) or renamed (swap, publish)
into it: both are atomic, and a crash leaves a hidden file that no listing shows. `swap` holds an advisory lock, which
the system releases when its holder dies.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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
)


class LocalObjectStore(ObjectStore):
    """An object store in a local folder, which need not exist yet."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._folder = Path(unquote(urlsplit(root).path))

    def check_writable(self) -> None:
        try:
            with self._new_file(".scratch"):
                pass
        except OSError as error:
            raise StoreUnavailable(
                f"The store {self.root} can't be written: {error.strerror or error}. "
                "Make the folder writable, or name another store with FMNIST_STORE."
            ) from error

    def stat(self, key: str) -> ObjectStat | None:
        try:
            found = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectStat(key, found.st_size, _stat_etag(found))

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectNotFound(f"There is no {self.uri(key)}") from None

    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def create(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._new_file(key) as temporary:
            temporary.write(data)
            temporary.flush()
            os.fsync(temporary.fileno())
            try:
                os.link(temporary.name, path)
            except FileExistsError:
                raise ObjectExists(f"{self.uri(key)} exists already") from None
        _sync_folder(path.parent)

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            current = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
            if current != seen:
                raise SwapConflict(f"{self.uri(key)} was changed by another process meanwhile")
            with self.publish(key) as stream:
                stream.write(data)

    @contextmanager
    def publish(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with self._new_file(key) as temporary:
            yield temporary
            temporary.flush()
            os.fsync(temporary.fileno())
            Path(temporary.name).replace(path)
        _sync_folder(path.parent)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        yield from self._walk(self._prefix(prefix), prefix)

    def list_folders(self, prefix: str) -> Iterator[str]:
        with suppress(FileNotFoundError), os.scandir(self._prefix(prefix)) as entries:
            yield from sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def arrow(self, key: str) -> tuple[Any, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(self._path(key))

    def _path(self, key: str) -> Path:
        path = self._folder / checked_key(key)
        root = os.path.realpath(self._folder)
        if os.path.commonpath([root, os.path.realpath(path)]) != root:
            raise StoreUnavailable(f"{self.uri(key)} is, or lies behind, a link that leads out of the store.")
        return path

    def _prefix(self, prefix: str) -> Path:
        return self._path(prefix.rstrip("/")) if prefix else self._folder

    def _walk(self, folder: Path, prefix: str) -> Iterator[ObjectStat]:
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return
        # A folder sorts as its objects do, that is with the slash: the order is then the one that S3 lists in.
        for entry in sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False)):
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                found_stat = entry.stat()
                yield ObjectStat(prefix + entry.name, found_stat.st_size, _stat_etag(found_stat))

    @contextmanager
    def _new_file(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{uuid4().hex}"
        try:
            with temporary.open("xb") as stream:
                yield stream
        finally:
            temporary.unlink(missing_ok=True)


def _stat_etag(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
