"""The interface of every object store.

Every implementation guarantees (docs/architecture.md):

- Writes are atomic. An object is whole or absent at any moment and after any crash.
- `create` never replaces an object. `swap` replaces only the version that the caller has read.
- `publish` overwrites. Use it only for objects whose bytes follow from their key, so that writing one twice changes
  nothing.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO

from infra.errors import JobError, RequestError


class ObjectNotFound(RequestError):
    """No object has this key."""


class ObjectExists(JobError):
    """`create` found an object under the key."""


class SwapConflict(JobError):
    """`swap` found another version than the one the caller had read."""


class StoreMisconfigured(RequestError):
    """The store can't be used as it is configured: wrong credentials, no such bucket, no permission, …"""


class StoreUnavailable(JobError):
    """The store is down, full or failing. A retry may succeed."""


class ConnectionBroken(StoreUnavailable):
    """The connection broke in the middle of an answer to delta-rs, which doesn't retry that."""


@dataclass(frozen=True)
class ObjectStat:
    """What a listing says about an object."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Changes whenever the object's bytes do."""
    modified: datetime = field(compare=False)
    """Time of the write, in UTC by the store's clock. Not compared: its precision on S3 depends on the request."""


@dataclass(frozen=True)
class Unfinished:
    """The leftover of a writer that died. Listings don't show it, but it takes up space."""

    key: str
    """Key of the object that it would have become."""
    size: int
    """Bytes."""
    modified: datetime
    """Time of the last write, in UTC. On S3, the time when the upload started."""
    token: str
    """How the store identifies it."""
    is_scratch: bool = False
    """Whether the store wrote it to try out its own abilities."""


@dataclass(frozen=True)
class DeltaLocation:
    """Where delta-rs finds a table, and how it reaches it: the arguments of `DeltaTable` and `write_deltalake`."""

    uri: str
    storage_options: dict[str, str] = field(repr=False)
    """Settings and credentials, which expire. Empty for a folder."""


class Publication(BinaryIO):
    """The stream of `ObjectStore.publish`."""

    etag: str = ""
    """ETag of the object, after the block has ended."""


# A segment that starts with a dot is `..` or a hidden name. Stores keep unfinished objects under hidden names.
_UNSAFE = re.compile(r"(^|/)\.|^/|//|\\|[\x00-\x1f\x7f\ud800-\udfff]|^$|/$")


def is_key(key: str) -> bool:
    """Whether `key` can only name an object below the store's root that listings show."""
    return not _UNSAFE.search(key)


def checked_key(key: str) -> str:
    """Return `key` if it can only name an object below the store's root that listings show.

    Raises:
        RequestError: it is empty or absolute, has a backslash, a control character or an empty segment, or a segment
            starts with a dot.
    """
    if not is_key(key):
        raise RequestError(
            f"{key!r} is not an object key. Keys are relative, have no empty segments and no backslashes, and no "
            "segment starts with '.'."
        )
    return key


def checked_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty, or a key that ends with a slash.

    Raises:
        RequestError: it is neither.
    """
    if prefix and not prefix.endswith("/"):
        raise RequestError(f"{prefix!r} is not a prefix. Prefixes are empty or end with '/'.")
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix


class ObjectStore(ABC):
    """Objects under one root URI. Keys are relative paths with forward slashes."""

    root: str
    """Root URI without a trailing slash."""

    def uri(self, key: str) -> str:
        """Return the full URI of an object."""
        return f"{self.root}/{key}"

    @abstractmethod
    def check_writable(self) -> None:
        """Write and remove a scratch object.

        Raises:
            StoreMisconfigured: the store can't be written as it is configured.
            StoreUnavailable: the store is down.
        """

    @abstractmethod
    def check_conditional_writes(self) -> None:
        """Check that the store honours conditional writes, which `create` and `swap` rely on.

        `create` and `swap` call it themselves if needed. A second call in the same process is free.

        Raises:
            StoreMisconfigured: the store ignores conditions.
            StoreUnavailable: the store is down.
        """

    @abstractmethod
    def stat(self, key: str) -> ObjectStat | None:
        """Return an object's size, ETag and time, or None if it doesn't exist."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Read an object.

        Raises:
            ObjectNotFound: it doesn't exist.
        """

    @abstractmethod
    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        """Read an object, and return its ETag for `swap` as well.

        Raises:
            ObjectNotFound: it doesn't exist.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Write a new object.

        Raises:
            ObjectExists: an object has this key. It is unchanged.
        """

    @abstractmethod
    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        """Replace an object if its ETag is still `seen`, or create it if `seen` is None.

        Raises:
            SwapConflict: the object is another version.
        """

    @abstractmethod
    def publish(self, key: str) -> AbstractContextManager[Publication]:
        """Open a stream. Its bytes become the object when the block ends, and are dropped if the block raises."""

    @abstractmethod
    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectStat]:
        """List the objects whose keys start with `prefix`, in the order of their keys' bytes.

        Args:
            prefix: empty, or ends with `/`.
            after: skips the keys up to and including this one. It need not exist.
        """

    @abstractmethod
    def list_folders(self, prefix: str) -> Iterator[str]:
        """List the names of the folders directly under `prefix` that hold objects.

        They come in the order of the keys below them, as if each name ended with a slash.

        Args:
            prefix: empty, or ends with `/`.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""

    @abstractmethod
    def list_unfinished(self, before: datetime) -> Iterator[Unfinished]:
        """List what writers left that died before a moment: hidden files, or uploads with some of their parts."""

    @abstractmethod
    def discard(self, unfinished: Unfinished) -> None:
        """Remove what `list_unfinished` found, if it still exists. Its writer fails if it is still alive."""

    @abstractmethod
    def arrow(self, key: str) -> tuple[Any, str]:
        """Return the `pyarrow.fs.FileSystem` that reads an object as Parquet, and the object's path in it."""

    @abstractmethod
    def delta(self, prefix: str) -> DeltaLocation:
        """Return where delta-rs finds the table under `prefix`, and how it reaches it.

        The credentials are the current ones, and delta-rs can't refresh them. Call this each time you open a table.

        Args:
            prefix: empty, or ends with `/`.

        Raises:
            StoreMisconfigured: there are no credentials, or the folder's name is one that delta-rs can't open.
        """

    @abstractmethod
    def sync_delta(self, prefix: str, version: int, *, files: bool = True) -> None:
        """Make a commit of delta-rs survive a power failure. On S3 there is nothing to do.

        Args:
            prefix: the table's prefix, as for `delta`.
            version: version of the table that the commit created.
            files: whether to sync the files that it adds as well. Those written by `publish` need no sync.
        """

    @abstractmethod
    def delta_failure(self, error: Exception) -> RequestError | JobError | None:
        """Return the store's error for an error of delta-rs, or None if the store didn't cause it."""
