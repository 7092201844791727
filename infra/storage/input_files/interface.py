"""What listing and reading share for all places: a listed file, errors, and reasons for quarantine."""

import errno
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from infra.errors import JobError, RequestError

NOT_THERE = "none"
"""Fingerprint of a file that a list names but that doesn't exist."""

VANISHED = "vanished: the file does not exist any more"
CHANGED = "changed: the file changed after it was planned, and the next run classifies it"
FOLDER = "unreadable: it is a folder. Name the folder itself as an input, or list its files"
DENIED = "permission: reading the file is denied"

GLOB_SIGN = re.compile(r"[*?\[]")

MACHINE_FAILURES = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}
)
"""Error numbers that a file isn't to blame for, and that a retry may not meet again."""


class InputNotFound(RequestError):
    """The input doesn't exist."""


class InputsUnavailable(JobError):
    """S3 or this machine fails to provide the inputs. A retry may succeed."""


class InputUnreadable(Exception):
    """One file can't be read, while its store works. The text starts with the kind of reason."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A listed file."""

    uri: str
    """Canonical URI."""
    size: int
    """Bytes."""
    fingerprint: str
    """Size and time of the last change. On S3, size and ETag."""


def first_with_files(listings: Iterable[Iterator[InputFile]]) -> Iterator[InputFile]:
    """Yield the files of the first listing that has any.

    Raises:
        InputNotFound: no listing found its folder.
    """
    missing: list[InputNotFound] = []
    exists = False
    for listing in listings:
        try:
            first = next(listing, None)
        except InputNotFound as error:
            missing.append(error)
            continue
        if first is not None:
            yield first
            yield from listing
            return
        exists = True
    if not exists:
        raise missing[0]


def check_version(found: str, planned: str, size: int, largest: int) -> None:
    """Check a file's fingerprint and size against what was planned.

    Raises:
        InputUnreadable: it didn't exist, has changed, or is too large.
    """
    if planned == NOT_THERE:
        raise InputUnreadable("vanished: the file did not exist when it was planned")
    if found != planned:
        raise InputUnreadable(CHANGED)
    if size > largest:
        raise InputUnreadable(f"too large: {size:,} bytes")
