"""Input files: list them by path, folder, glob or URI, and read them by canonical URI (see `uris`).

A file's fingerprint changes when the file does.
"""

import errno
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.utils import glob_translate

from infra.errors import JobError, RequestError
from infra.storage.object_store.s3_configuration import MAX_ATTEMPTS
from infra.storage.uris import (
    bucket_and_key,
    local_path,
    percent_decode,
    percent_encode,
    possible_uris,
    real_folder,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOT_THERE = "none"
"""Fingerprint of a file that a list names but that doesn't exist."""

VANISHED = "vanished: the file does not exist any more"
CHANGED = "changed: the file changed after it was planned, and the next run classifies it"
_DENIED = "permission: reading the file is denied"

_GLOB_SIGN = re.compile(r"[*?\[]")


class InputNotFound(RequestError):
    """The input doesn't exist."""


class InputsUnavailable(JobError):
    """S3 or this machine fails to provide the inputs. A retry may succeed."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A listed file."""

    uri: str
    """Canonical URI."""
    size: int
    """Bytes."""
    fingerprint: str
    """Size and time of the last change. On S3, size and ETag."""


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` of a canonical URI and the path in it.

    Ask for an S3 file system again for each file and in each process, because its credentials may expire.

    Raises:
        RequestError: the URI's scheme is unknown, it names another host, or S3 is misconfigured.
    """
    from pyarrow import fs

    if not _is_on_s3(uri):
        return fs.LocalFileSystem(), local_path(uri)
    bucket, key = bucket_and_key(uri)
    with _clear_s3_errors(uri, bucket):
        from infra.storage.object_store.s3_configuration import s3_connection

        return s3_connection().arrow_filesystem(), f"{bucket}/{key}"


def list_input_files(location: str) -> Iterator[InputFile]:
    """List the files that a path or URI names: a file, a folder with all files below it, or a glob.

    Globs use `*`, `?`, `[…]` and `**`. Folders and globs skip hidden files and folders, whose names start with `.` or
    `_`. Files are streamed as they are listed, on S3 in the order of their keys. A folder on S3 is a prefix that ends
    with a slash. A file that two links lead to is listed twice, with the same URI.

    Args:
        location: path or URI, as described in `uris.canonical_uri`. If it can stand for two names and no file has the
            first, the second is tried.

    Raises:
        InputNotFound: the file or folder doesn't exist.
        InputsUnavailable: S3 or this machine fails.
        RequestError: permission is denied, the glob is invalid, or a name isn't UTF-8.
    """
    if not location:
        raise InputNotFound("An input is empty. Name a file, a folder or a glob.")
    with _clear_errors(location):
        uris = possible_uris(location)
        if _is_on_s3(uris[0]):
            yield from _first_with_files(_list_s3(location, *bucket_and_key(uri)) for uri in uris)
        else:
            yield from _list_local(location, [local_path(uri) for uri in uris])


def _is_on_s3(uri: str) -> bool:
    return uri[:5].lower() == "s3://"


def _first_with_files(listings: Iterable[Iterator[InputFile]]) -> Iterator[InputFile]:
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


class InputUnreadable(Exception):
    """One file can't be read, while its store works. The text starts with the kind of reason."""


def stat_input(uri: str) -> InputFile | None:
    """Look up a file by its canonical URI, or return None if it doesn't exist.

    Raises:
        InputUnreadable: permission is denied, or the URI is malformed.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    if _is_on_s3(uri):
        bucket, key = _place_on_s3(uri)
        with _clear_s3_errors(uri, bucket):
            from infra.storage.object_store.s3_configuration import s3_connection

            return _named_object(s3_connection().client, bucket, key)
    path = _local_path(uri)
    try:
        with _clear_local_errors(uri):
            return _local_file(path, Path(path).stat())
    except InputUnreadable as reason:
        if str(reason).startswith("vanished"):
            return None
        raise


def read_input(uri: str, fingerprint: str, largest: int) -> bytes:
    """Read a listed file as a whole.

    Args:
        uri: canonical URI of the file.
        fingerprint: the listed fingerprint.
        largest: maximum size in bytes.

    Raises:
        InputUnreadable: the file is gone, changed or too large, or permission is denied.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    if _is_on_s3(uri):
        return _read_s3(uri, fingerprint, largest)
    path = _local_path(uri)
    with _clear_local_errors(uri):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InputUnreadable("unreadable: not a regular file")
            _check_version(local_fingerprint(found), fingerprint, found.st_size, largest)
            return os.read(descriptor, found.st_size)
        finally:
            os.close(descriptor)


def open_input(uri: str, *, fetch: int = 0) -> Any:
    """Open a file as a random-access `pyarrow.NativeFile`.

    Args:
        uri: canonical URI of the file.
        fetch: size in bytes up to which a file on S3 is fetched in one request.

    Raises:
        InputUnreadable: the file is gone or not a regular file, or permission is denied.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    if _is_on_s3(uri):
        from pyarrow import BufferReader

        _place_on_s3(uri)
        filesystem, path = filesystem_of(uri)
        try:
            file = filesystem.open_input_file(path)
            if file.size() > fetch:
                return file
            with file:
                return BufferReader(file.read())
        except FileNotFoundError:
            raise InputUnreadable(VANISHED) from None
        except OSError as error:
            if "ACCESS_DENIED" in str(error):
                raise InputUnreadable(_DENIED) from None
            raise InputsUnavailable(f"{uri} can't be read: {error}.") from None
    from pyarrow import fs

    path = _local_path(uri)
    with _clear_local_errors(uri):
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputUnreadable("unreadable: not a regular file")
        return fs.LocalFileSystem().open_input_file(path)


_MACHINE_FAILURES = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}
)
"""Error numbers that a file isn't to blame for, and that a retry may not meet again."""


@contextmanager
def _clear_local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise InputUnreadable(VANISHED) from None
    except PermissionError:
        raise InputUnreadable(_DENIED) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        if getattr(error, "errno", None) in _MACHINE_FAILURES:
            raise InputsUnavailable(f"{uri} can't be read: {error}.") from None
        raise InputUnreadable(f"unreadable: {getattr(error, 'strerror', None) or error}") from None


def _local_path(uri: str) -> str:
    try:
        return local_path(uri)
    except RequestError as error:
        raise InputUnreadable(f"unreadable: {error}") from None


def _place_on_s3(uri: str) -> tuple[str, str]:
    try:
        return bucket_and_key(uri)
    except RequestError as error:
        raise InputUnreadable(f"unreadable: {error}") from None


def _read_s3(uri: str, fingerprint: str, largest: int) -> bytes:
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

    from infra.storage.object_store.s3_configuration import s3_connection
    from infra.storage.object_store.s3_errors import error_code, http_status

    bucket, key = _place_on_s3(uri)
    attempts = itertools.count(1)
    with _clear_s3_errors(uri, bucket):
        client = s3_connection().client
        while True:
            try:
                answer = client.get_object(Bucket=bucket, Key=key)
                size = answer["ContentLength"]
                _check_version(s3_fingerprint(size, answer["ETag"]), fingerprint, size, largest)
                return answer["Body"].read()
            except (HTTPClientError, IncompleteReadError):  # botocore retries only up to the first byte
                if next(attempts) == MAX_ATTEMPTS:
                    raise
            except ClientError as error:
                if http_status(error) == 404 and error_code(error) != "NoSuchBucket":
                    raise InputUnreadable(VANISHED) from None
                if http_status(error) == 403 and error_code(error) == "AccessDenied":
                    raise InputUnreadable(_DENIED) from None
                raise


def _check_version(found: str, planned: str, size: int, largest: int) -> None:
    if planned == NOT_THERE:
        raise InputUnreadable("vanished: the file did not exist when it was planned")
    if found != planned:
        raise InputUnreadable(CHANGED)
    if size > largest:
        raise InputUnreadable(f"too large: {size:,} bytes")


def _list_local(location: str, paths: list[str]) -> Iterator[InputFile]:
    named = next(filter(os.path.lexists, paths), None)
    if named is None and _GLOB_SIGN.search(location):
        yield from _first_with_files(_list_glob(location, *glob) for glob in _local_globs(location))
        return
    path = named or paths[0]
    if Path(path).is_file():
        yield _local_file(path, Path(path).stat())
        return
    for _, entry in _walk(_existing_folder(location, path), "", ()):
        with suppress(FileNotFoundError):  # deleted while its folder was listed
            yield _local_file(entry.path, entry.stat())


def _local_globs(location: str) -> list[tuple[str, str]]:
    """Return the folder to search and the pattern below it, for each meaning of a glob."""
    start = _GLOB_SIGN.split(location, maxsplit=1)[0].rfind("/") + 1
    folders = [local_path(uri) for uri in possible_uris(location[:start] or ".")]
    patterns = [location[start:]]
    if location[:7].lower() == "file://":
        patterns.insert(0, percent_decode(location[start:]))
    return list(dict.fromkeys([(folders[0], patterns[0]), (folders[-1], patterns[-1])]))


def _list_glob(location: str, folder: str, pattern: str) -> Iterator[InputFile]:
    matches = re.compile(glob_translate(os.path.normpath(pattern))).fullmatch
    for inside, entry in _walk(_existing_folder(location, folder), "", ()):
        if matches(inside):
            with suppress(FileNotFoundError):  # deleted while its folder was listed
                yield _local_file(entry.path, entry.stat())


def _existing_folder(location: str, path: str) -> str:
    """Return the path of a folder without symbolic links."""
    if not Path(path).is_dir():
        raise InputNotFound(f"{location}: no such file or folder.")
    return real_folder(path)


def _walk(folder: str, inside: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """List the files below a folder that aren't hidden. Links are followed, except to a folder that holds them.

    Args:
        folder: path of the folder without symbolic links.
        inside: path of the folder in the listed one, as it is named there, empty or with a slash at the end.
        above: device and inode of each folder above.

    Yields:
        The path of each file in the listed folder, as it is named there, and the file, whose own path has no linked
        folder.
    """
    found = Path(folder).stat()
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_dir():
                below = real_folder(entry.path) if entry.is_symlink() else entry.path
                yield from _walk(below, f"{inside}{entry.name}/", (*above, identity))
            elif entry.is_file():
                yield f"{inside}{entry.name}", entry


def _local_file(path: str, found: os.stat_result) -> InputFile:
    os.fsencode(path).decode()  # raises if the name isn't UTF-8, and so can't be a URI
    return InputFile(f"file://{percent_encode(path)}", found.st_size, local_fingerprint(found))


def local_fingerprint(found: os.stat_result) -> str:
    """Identify the version of a local file by its size and the time of its last change."""
    return f"{found.st_size:x}-{found.st_mtime_ns:x}"


def _list_s3(location: str, bucket: str, path: str) -> Iterator[InputFile]:
    with _clear_s3_errors(location, bucket):
        from infra.storage.object_store.s3_configuration import s3_connection

        client = s3_connection().client
        named = _named_object(client, bucket, path)
        if named is not None:
            yield named
            return
        folder = f"{path.rstrip('/')}/" if path else ""
        if _holds_any(client, bucket, folder):
            for key, file in _listed(client, bucket, folder):
                if not _is_hidden(key[len(folder) :]):
                    yield file
            return
        yield from _list_s3_glob(location, bucket, path)


def _list_s3_glob(location: str, bucket: str, path: str) -> Iterator[InputFile]:
    from infra.storage.object_store.s3_configuration import s3_connection

    client = s3_connection().client
    literal = _GLOB_SIGN.split(path, maxsplit=1)[0]
    base = literal[: literal.rfind("/") + 1]
    # A sign may also be percent-encoded in the location, and then it isn't a glob.
    if not _GLOB_SIGN.search(location) or literal == path or (base and not _holds_any(client, bucket, base)):
        raise InputNotFound(f"{location}: no such object or prefix.")
    pattern = re.compile(glob_translate(path))
    for key, file in _listed(client, bucket, literal):
        if not _is_hidden(key[len(base) :]) and pattern.fullmatch(key):
            yield file


def _named_object(client: "S3Client", bucket: str, key: str) -> InputFile | None:
    from botocore.exceptions import ClientError

    from infra.storage.object_store.s3_errors import http_status

    if not key or key.endswith("/"):
        return None
    try:
        found = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if http_status(error) == 404:
            return None
        raise
    return _s3_file(bucket, key, found["ContentLength"], found["ETag"])


def _holds_any(client: "S3Client", bucket: str, prefix: str) -> bool:
    return bool(client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"))


def _listed(client: "S3Client", bucket: str, prefix: str) -> Iterator[tuple[str, InputFile]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", []):
            if not found["Key"].endswith("/"):  # some tools create such objects as folders
                yield found["Key"], _s3_file(bucket, found["Key"], found["Size"], found["ETag"])


def _s3_file(bucket: str, key: str, size: int, etag: str) -> InputFile:
    return InputFile(f"s3://{bucket}/{percent_encode(key)}", size, s3_fingerprint(size, etag))


def s3_fingerprint(size: int, etag: str) -> str:
    """Identify the version of an S3 object by its size and ETag."""
    bare = etag.strip('"')
    return f"{size:x}-{bare}"


def _is_hidden(inside: str) -> bool:
    return inside.startswith((".", "_")) or "/." in inside or "/_" in inside


@contextmanager
def _clear_s3_errors(location: str, bucket: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    from infra.storage.object_store.s3_configuration import s3_connection
    from infra.storage.object_store.s3_errors import explain, is_server_failure

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        try:
            endpoint = s3_connection().endpoint
        except BotoCoreError:  # the error that is being explained
            endpoint = "the server"
        explanation = explain(error, bucket=bucket, endpoint=endpoint)
        failure = InputsUnavailable if is_server_failure(error) else RequestError
    else:
        return
    # Without the cause, which may hold the output of a credential process.
    raise failure(f"{location} can't be read: {explanation}") from None


@contextmanager
def _clear_errors(location: str) -> Iterator[None]:
    try:
        yield
    except RequestError:  # it is a ValueError, too
        raise
    except UnicodeDecodeError as error:
        raise RequestError(f"{location} holds a file whose name isn't UTF-8: {error.object!r}. Rename it.") from None
    except (OSError, ValueError, re.error) as error:  # ValueError: a name with a NUL, or a glob like `a**b`
        failure = InputsUnavailable if getattr(error, "errno", None) in _MACHINE_FAILURES else RequestError
        raise failure(f"{location} can't be listed: {error}.") from None
