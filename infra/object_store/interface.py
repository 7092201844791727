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
from dataclasses import dataclass
from typing import Any, BinaryIO

from infra.errors import JobError, RequestError


class ObjectNotFound(RequestError):
    """There is no object under that key."""


class ObjectExists(JobError):
    """`create` found the key taken."""


class SwapConflict(JobError):
    """`swap` found another version than the one the caller had seen."""


class StoreUnavailable(RequestError):
    """The store can't be reached, read or written."""


@dataclass(frozen=True)
class ObjectStat:
    """What a listing tells of an object."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Changes whenever the object's bytes do."""


_UNSAFE = re.compile(r"(^|/)\.{1,2}(/|$)|^/|//|\\|[\x00-\x1f\x7f]|^$|/$")


def checked_key(key: str) -> str:
    """Return `key` if it can only name an object below a store's root.

    Raises:
        RequestError: it is empty or absolute, or has a `..`, an empty segment, a backslash or a control character.
    """
    if _UNSAFE.search(key):
        raise RequestError(
            f"{key!r} is no object key: keys are relative, with no '..', no empty segment, no backslash."
        )
    return key


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
            StoreUnavailable: that failed; the message says why and what to do.
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
        """Names of the folders directly under `prefix` (which ends with `/`, or is empty), in order."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""

    @abstractmethod
    def arrow(self, key: str) -> tuple[Any, str]:
        """The `pyarrow.fs.FileSystem` and the path in it under which an object is read as Parquet."""
