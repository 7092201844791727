"""The one interface through which the project keeps durable things.

Rules that every implementation keeps (docs/architecture.md):

- an object is whole or absent, at every instant and after any crash;
- `create` never replaces, `swap` replaces only what the caller has seen;
- `publish` is for objects whose bytes are a function of their key: publishing one twice changes nothing.
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
    """There is no object under that key."""


class ObjectExists(JobError):
    """`create` found the key taken."""


class SwapConflict(JobError):
    """`swap` found another version than the one the caller had seen."""


class StoreMisconfigured(RequestError):
    """The store can't be used as it is configured: wrong credentials, no such bucket, no permission, …"""


class StoreUnavailable(JobError):
    """The store is down, full or failing. A retry may succeed."""


@dataclass(frozen=True)
class ObjectStat:
    """What a listing tells of an object."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Changes whenever the object's bytes do."""
    modified: datetime = field(compare=False)
    """When it was written, UTC, by the store's clock; S3 tells it to the second in one answer, finer in another."""


@dataclass(frozen=True)
class Unfinished:
    """What a writer that died left of an object: no object, shown by no listing, but it takes up space."""

    key: str
    """Of the object that was to be."""
    size: int
    """Bytes."""
    modified: datetime
    """When it was last written to, UTC; on S3, when it was begun."""
    token: str
    """By which the store knows it."""
    is_scratch: bool = False
    """Whether the store itself wrote it, to try out what it can do."""


# A segment that begins with a dot is `..`, or one of the hidden names under which a store keeps what is unfinished.
_UNSAFE = re.compile(r"(^|/)\.|^/|//|\\|[\x00-\x1f\x7f\ud800-\udfff]|^$|/$")


def is_key(key: str) -> bool:
    """Whether `key` can only name an object below a store's root, and one that listings show."""
    return not _UNSAFE.search(key)


def checked_key(key: str) -> str:
    """Return `key` if it can only name an object below a store's root, and one that listings show.

    Raises:
        RequestError: it is empty or absolute, or has an empty segment, one that begins with a dot, a backslash or a
            control character.
    """
    if not is_key(key):
        raise RequestError(
            f"{key!r} is no object key: keys are relative, with no empty segment, none that begins with '.', and no "
            "backslash."
        )
    return key


def checked_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty, or a key with a slash at its end.

    Raises:
        RequestError: it is neither.
    """
    if prefix and not prefix.endswith("/"):
        raise RequestError(f"{prefix!r} is no prefix to list: prefixes are empty, or end with '/'.")
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix


class ObjectStore(ABC):
    """Objects under one root URI. Keys are relative paths with forward slashes."""

    root: str
    """Root URI, without a slash at its end."""

    def uri(self, key: str) -> str:
        """The object's full URI."""
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
        """Find out whether `create` and `swap` hold here where several write at once.

        `create` and `swap` ask for it themselves where there is doubt; asking twice in a process costs nothing.

        Raises:
            StoreMisconfigured: the store ignores conditions.
            StoreUnavailable: the store is down.
        """

    @abstractmethod
    def stat(self, key: str) -> ObjectStat | None:
        """Size and ETag, or None where there is no such object."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """All bytes of an object.

        Raises:
            ObjectNotFound: there is none.
        """

    @abstractmethod
    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        """All bytes, and the ETag to hand to `swap`.

        Raises:
            ObjectNotFound: there is none.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Write a new object.

        Raises:
            ObjectExists: the key is taken; the object there is left as it is.
        """

    @abstractmethod
    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        """Replace an object if it is still the one whose ETag is `seen`, or create it if `seen` is None.

        Raises:
            SwapConflict: another version is there.
        """

    @abstractmethod
    def publish(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open a stream whose bytes become the object when the block ends, and are dropped if it raises."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """The objects whose keys begin with `prefix` (which ends with `/`, or is empty), in the order of their keys."""

    @abstractmethod
    def list_folders(self, prefix: str) -> Iterator[str]:
        """Names of the folders with objects directly under `prefix` (which ends with `/`, or is empty).

        In the order of the keys below them, that is as if each name had its slash.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""

    @abstractmethod
    def list_unfinished(self, before: datetime) -> Iterator[Unfinished]:
        """What writers left that died before that moment: hidden files, uploads of which some parts arrived."""

    @abstractmethod
    def discard(self, unfinished: Unfinished) -> None:
        """Remove what `list_unfinished` found; nothing happens where it is gone. A writer that lives fails by it."""

    @abstractmethod
    def arrow(self, key: str) -> tuple[Any, str]:
        """The `pyarrow.fs.FileSystem` and the path in it under which an object is read as Parquet."""
