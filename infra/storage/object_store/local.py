# ruff: noqa: D102 (ObjectStore says what its methods do)
"""Objects as files in a local folder: `file://`.

A new file gets a hidden name next to its destination and is synced. Then it is linked (create) or renamed (swap,
publish) to its final name. Both are atomic, and a crash leaves a hidden file that listings don't show. `swap` holds an
advisory lock, which the operating system releases if the process dies.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, cast
from urllib.parse import unquote
from uuid import uuid4

from infra.errors import JobError, RequestError
from infra.storage.object_store.delta_errors import missing_file_in, os_error_in, text_of
from infra.storage.object_store.interface import (
    DeltaLocation,
    ObjectExists,
    ObjectNotFound,
    ObjectStat,
    ObjectStore,
    Publication,
    StoreMisconfigured,
    StoreUnavailable,
    SwapConflict,
    Unfinished,
    checked_key,
    checked_prefix,
    is_key,
)

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}(\.link)?")
"""Names of files that are being written. Lock files don't match: another process may hold one, so they are kept."""

_SCRATCH = "scratch-file"

_NOT_IN_DELTA = re.compile(r"[\[\]\\^|\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")
"""What a path can't hold if delta-rs 1.6 is to open a table there. It takes a percent escape for what it stands for."""

_CAN_LINK: set[str] = set()
"""Roots whose file system is known to have hard links and locks."""

_FREE_SPACE = "Free space there, or name another store with FMNIST_STORE."
_ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or name another store with FMNIST_STORE.",
    errno.EIO: "Check the disk, or name another store with FMNIST_STORE.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
}
_WRONG_PLACE = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
"""Error numbers that mean the wrong folder or missing permissions. All others mean that the machine or disk failed."""


class LocalObjectStore(ObjectStore):
    """An object store in a local folder, which is created on the first write."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._folder = Path(self.root.removeprefix("file://"))

    def check_writable(self) -> None:
        with self._scratch_file():
            pass

    def check_conditional_writes(self) -> None:
        if self.root in _CAN_LINK:
            return
        try:
            with self._scratch_file() as scratch:
                fcntl.flock(scratch, fcntl.LOCK_EX)
                link = Path(f"{scratch.name}.link")
                os.link(scratch.name, link)
                link.unlink()
        except OSError as error:
            raise StoreMisconfigured(
                f"The store {self.root} can't be trusted with several writers: its file system has no hard links or no "
                f"locks ({error.strerror or error}). Name another store with FMNIST_STORE."
            ) from error
        _CAN_LINK.add(self.root)

    def stat(self, key: str) -> ObjectStat | None:
        try:
            found = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed("read", error) from error
        return _object_stat(key, found) if S_ISREG(found.st_mode) else None

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectNotFound(f"{self.uri(key)} doesn't exist.") from None
        except OSError as error:
            raise self._failed("read", error) from error

    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def create(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._new_file(path) as temporary:
            temporary.write(data)
            with self._written():
                _sync(temporary)
                try:
                    os.link(temporary.name, path)
                except FileExistsError:
                    raise ObjectExists(f"{self.uri(key)} already exists.") from None
                _sync_existing(path.parent)

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        try:
            if seen is None:
                # Without the lock, which `create` doesn't take either: only one of two links can succeed.
                self.create(key, data)
            else:
                self._replace(key, data, seen)
        except (ObjectExists, ObjectNotFound):
            raise SwapConflict(f"Another process has changed {self.uri(key)}.") from None

    @contextmanager
    def publish(self, key: str) -> Iterator[Publication]:
        path = self._path(key)
        with self._new_file(path) as temporary:
            published = cast(Publication, temporary)
            yield published
            with self._written():
                _sync(temporary)
                published.etag = _stat_etag(os.fstat(temporary.fileno()))
                Path(temporary.name).replace(path)
                _sync_existing(path.parent)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectStat]:
        try:
            yield from self._walk(self._prefix(prefix), prefix, after)
        except OSError as error:
            raise self._failed("read", error) from error

    def list_folders(self, prefix: str) -> Iterator[str]:
        folder = self._prefix(prefix)
        try:
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                names = sorted(f"{entry.name}/" for entry in entries if entry.is_dir(follow_symlinks=False))
                # A writer that died, or a deletion, can leave a folder without objects. S3 wouldn't list it.
                yield from (name[:-1] for name in names if is_key(name[:-1]) and _holds_object(folder / name))
        except OSError as error:
            raise self._failed("read", error) from error

    def delete(self, key: str) -> None:
        path = self._path(key)
        if path.is_dir():
            return
        with self._written(), suppress(FileNotFoundError, NotADirectoryError):
            if os.path.lexists(_lock_path(path)):
                with self._locked(path):
                    path.unlink()
                    _lock_path(path).unlink()
            else:
                path.unlink()
            self._remove_empty(path.parent)

    def list_unfinished(self, before: datetime) -> Iterator[Unfinished]:
        for folder, _, names in os.walk(self._folder):
            for name in sorted(names):
                match = _TEMPORARY.fullmatch(name)
                if not match:
                    continue
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # its writer has finished
                    found = path.lstat()
                    key = path.with_name(match["name"]).relative_to(self._folder).as_posix()
                    token = path.relative_to(self._folder).as_posix()
                    if S_ISREG(found.st_mode) and _modified(found) < before:
                        yield Unfinished(key, found.st_size, _modified(found), token, is_scratch=key == _SCRATCH)

    def discard(self, unfinished: Unfinished) -> None:
        path = self._folder / unfinished.token
        self._path(unfinished.key)  # refuses a path outside the store
        if path.parent == (self._folder / unfinished.key).parent and _TEMPORARY.fullmatch(path.name):
            with self._written():
                path.unlink(missing_ok=True)

    def arrow(self, key: str) -> tuple[Any, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(self._path(key))

    def delta(self, prefix: str) -> DeltaLocation:
        folder = self._prefix(prefix)
        if found := _NOT_IN_DELTA.search(str(folder)):
            raise StoreMisconfigured(
                f"Delta tables can't be kept in {folder}, because of the {found[0]!r} in its path. Rename the folder, "
                "or name another store with FMNIST_STORE."
            )
        return DeltaLocation(folder.absolute().as_uri(), {})

    def sync_delta(self, prefix: str, version: int, *, files: bool = True) -> None:
        folder = self._prefix(prefix)
        log = folder / "_delta_log"
        with self._written():
            added = [folder / path for path in _files_added(log / f"{version:020}.json")] if files else []
            for path in [*added, *log.glob(f"{version:020}.*"), log / "_last_checkpoint"]:
                _sync_existing(path)
            for parent in {path.parent for path in added} | {log}:
                _sync_existing(parent)
            if version == 0:  # the folders are new as well
                for parent in (folder, *folder.parents):
                    _sync_existing(parent)
                    if parent == self._folder:
                        break

    def delta_failure(self, error: Exception) -> RequestError | JobError | None:
        text = text_of(error)
        if missing := missing_file_in(text):
            return ObjectNotFound(f"{missing} doesn't exist, but the table names it. Restore it from a backup.")
        found = os_error_in(text)
        return self._failed("used", found) if found and found.errno != errno.ENOENT else None

    def _replace(self, key: str, data: bytes, seen: str) -> None:
        path = self._path(key)
        if not path.is_file():
            raise ObjectNotFound(self.uri(key))
        with self._locked(path):
            if self.read_with_etag(key)[1] != seen:
                raise ObjectExists(self.uri(key))
            with self.publish(key) as stream:
                stream.write(data)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of an existing object, so that no other process swaps or deletes it."""
        lock_path = _lock_path(path)
        while True:
            try:
                # Neither truncated nor followed, so that the target of a link in its place is left alone.
                lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # the object has been deleted, and its folder with it
                raise ObjectNotFound(self.root) from None
            except OSError as error:
                raise self._failure_class(error)(
                    f"The store {self.root} can't be used: {lock_path} can't be opened ({error.strerror}). Remove it."
                ) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                with suppress(FileNotFoundError):  # the previous holder deleted the object and its lock
                    if os.fstat(lock).st_ino == lock_path.lstat().st_ino:
                        yield
                        return
            finally:
                os.close(lock)

    def _path(self, key: str) -> Path:
        path = self._folder / checked_key(key)
        root = os.path.realpath(self._folder)
        if os.path.commonpath([root, os.path.realpath(path)]) != root:
            raise StoreMisconfigured(f"{self.uri(key)} is behind a link that leads out of the store. Remove the link.")
        return path

    def _prefix(self, prefix: str) -> Path:
        return self._path(checked_prefix(prefix).removesuffix("/")) if prefix else self._folder

    def _walk(self, folder: Path, prefix: str, after: str) -> Iterator[ObjectStat]:
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if is_key(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            return
        # Folders sort with their slash, which gives the order in which S3 lists.
        for entry in sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False)):
            key = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if f"{key}/" >= after or after.startswith(f"{key}/"):
                    yield from self._walk(folder / entry.name, f"{key}/", after)
            elif key > after and entry.is_file(follow_symlinks=False):
                try:
                    found_stat = entry.stat()
                except FileNotFoundError:  # deleted after the folder was read
                    continue
                yield _object_stat(key, found_stat)

    def _remove_empty(self, folder: Path) -> None:
        """Remove the folders that have become empty, unless another process is writing to them."""
        with suppress(OSError):
            while folder != self._folder:
                folder.rmdir()
                folder = folder.parent

    def _scratch_file(self) -> AbstractContextManager[BinaryIO]:
        return self._new_file(self._folder / _SCRATCH)

    @contextmanager
    def _new_file(self, path: Path) -> Iterator[BinaryIO]:
        temporary = path.parent / f".{path.name}.{uuid4().hex}"
        with self._written():
            raw = self._open_new(temporary)
        stream = io.BufferedWriter(raw, 2**20)
        try:
            yield stream
        finally:
            # Bypasses the buffer. If the block raised, its content isn't wanted, and may not fit on the disk.
            raw.close()
            temporary.unlink(missing_ok=True)

    def _open_new(self, path: Path) -> "_NewFile":
        for _ in range(100):
            # Either may fail while another process removes a folder whose last object it has deleted.
            with suppress(FileNotFoundError, FileExistsError):
                path.parent.mkdir(parents=True, exist_ok=True)
                return _NewFile(path, self)
        path.parent.mkdir(parents=True, exist_ok=True)
        return _NewFile(path, self)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed("written", error) from error

    def _failed(self, what: str, error: OSError) -> StoreMisconfigured | StoreUnavailable:
        advice = _ADVICE.get(
            error.errno or 0,
            f"Make the folder {'readable' if what == 'read' else 'writable'}, or name another store with FMNIST_STORE.",
        )
        return self._failure_class(error)(f"The store {self.root} can't be {what}: {error.strerror or error}. {advice}")

    @staticmethod
    def _failure_class(error: OSError) -> type[StoreMisconfigured] | type[StoreUnavailable]:
        return StoreMisconfigured if error.errno in _WRONG_PLACE else StoreUnavailable


class _NewFile(io.FileIO):
    """A file whose write errors become the store's errors. Errors of the code between writes stay as they are."""

    def __init__(self, path: Path, store: LocalObjectStore) -> None:
        super().__init__(path, "x")
        self._store = store

    def write(self, data: Any) -> int:
        with self._store._written():
            return super().write(data)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _lock_path(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


def _holds_object(folder: Path) -> bool:
    """Whether a folder or one below it holds an object."""
    folders = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if is_key(entry.name) and entry.is_file(follow_symlinks=False):
                return True
            if is_key(entry.name) and entry.is_dir(follow_symlinks=False):
                folders.append(folder / entry.name)
    return any(_holds_object(inner) for inner in folders)


def _object_stat(key: str, found: os.stat_result) -> ObjectStat:
    return ObjectStat(key, found.st_size, _stat_etag(found), _modified(found))


def _modified(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)


def _stat_etag(found: os.stat_result) -> str:
    # A file system's clock ticks only every few milliseconds. The inode differs, since each version is a new file.
    return f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"


def _files_added(commit: Path) -> list[str]:
    """Return the paths of the Parquet files that a commit adds, relative to the table's folder."""
    with suppress(FileNotFoundError), commit.open() as lines:
        actions = [json.loads(line) for line in lines]
        return [unquote(action["add"]["path"]) for action in actions if "add" in action]
    return []


def _sync_existing(path: Path) -> None:
    """Make a file or a folder's list of names survive a power failure."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # it has been deleted
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
