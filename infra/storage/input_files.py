"""Input files: list them by path, folder, glob or URI, and read them by URI.

A file's fingerprint changes when the file does.
"""

import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.utils import glob_translate

from infra.errors import JobError, RequestError
from infra.storage.object_store.s3_configuration import MAX_ATTEMPTS

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
    size: int
    """Bytes."""
    fingerprint: str
    """Size and time of the last change. On S3, size and ETag."""


def input_uri(location: str) -> str:
    """Turn a path or URI into a URI. A path becomes `file:///…`, absolute and without `..`.

    So a file has the same URI from whatever folder you name it. Links aren't resolved.
    """
    if "://" in location:
        return location
    # Unlike Path.expanduser, this leaves '~name' alone if no user has that name.
    return "file://" + os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` of a URI and the path in it.

    Ask for an S3 file system again for each file and in each process, because its credentials may expire.

    Raises:
        RequestError: the URI's scheme is unknown, it names another host, or S3 is misconfigured.
    """
    from pyarrow import fs

    scheme, _, rest = uri.partition("://")
    if scheme.lower() == "file":
        # The path isn't percent-encoded. Names may hold spaces, '%', '#' and '?'.
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise RequestError(f"{uri} names the host {host}. A file URI has three slashes: file:///{rest}")
        return fs.LocalFileSystem(), f"/{path}"
    if scheme.lower() == "s3":
        bucket, key = _bucket_and_key(uri)
        with _clear_s3_errors(uri, bucket):
            from infra.storage.object_store.s3_configuration import s3_connection

            return s3_connection().arrow_filesystem(), f"{bucket}/{key}"
    raise RequestError(f"{uri} has an unknown scheme. Use a file:// or s3:// URI, or a local path.")


def list_input_files(location: str) -> Iterator[InputFile]:
    """List the files that a path or URI names: a file, a folder with all files below it, or a glob.

    Globs use `*`, `?`, `[…]` and `**`. Folders and globs skip hidden files and folders, whose names start with `.` or
    `_`. Files are streamed as they are listed, on S3 in the order of their keys. A folder on S3 is a prefix that ends
    with a slash.

    Raises:
        InputNotFound: the file or folder doesn't exist.
        InputsUnavailable: S3 or this machine fails.
        RequestError: permission is denied, the glob is invalid, or a name isn't UTF-8.
    """
    if not location:
        raise InputNotFound("An input is empty. Name a file, a folder or a glob.")
    uri = input_uri(location)
    if uri.lower().startswith("s3://"):
        bucket, path = _bucket_and_key(uri)
        with _clear_s3_errors(location, bucket), _clear_errors(location):
            yield from _list_s3(location, bucket, path)
        return
    path = filesystem_of(uri)[1]
    with _clear_errors(location):
        yield from _list_local(location, path)


class InputUnreadable(Exception):
    """One file can't be read, while its store works. The text starts with the kind of reason."""


def stat_input(uri: str) -> InputFile | None:
    """Look up a file by its URI, or return None if it doesn't exist.

    Raises:
        InputUnreadable: permission is denied, or the URI is malformed.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    if uri.lower().startswith("s3://"):
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
        uri: URI of the file.
        fingerprint: the listed fingerprint.
        largest: maximum size in bytes.

    Raises:
        InputUnreadable: the file is gone, changed or too large, or permission is denied.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    if uri.lower().startswith("s3://"):
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
        uri: URI of the file.
        fetch: size in bytes up to which a file on S3 is fetched in one request.

    Raises:
        InputUnreadable: the file is gone or not a regular file, or permission is denied.
        InputsUnavailable: S3 or this machine fails.
        RequestError: S3 is misconfigured.
    """
    if uri.lower().startswith("s3://"):
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
        return str(filesystem_of(uri)[1])
    except RequestError as error:
        raise InputUnreadable(f"unreadable: {error}") from None


def _place_on_s3(uri: str) -> tuple[str, str]:
    try:
        return _bucket_and_key(uri)
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


def _list_local(location: str, path: str) -> Iterator[InputFile]:
    pattern, base = None, path
    if _GLOB_SIGN.search(path) and not os.path.lexists(path):
        pattern = re.compile(glob_translate(path))
        base = _GLOB_SIGN.split(path, maxsplit=1)[0].rpartition("/")[0] or "/"
    if pattern is None and Path(path).is_file():
        yield _local_file(path, Path(path).stat())
        return
    if not Path(base).is_dir():
        raise InputNotFound(f"{location}: no such file or folder.")
    for entry in _walk(base.rstrip("/") or "/", ()):
        if pattern is None or pattern.fullmatch(entry.path):
            with suppress(FileNotFoundError):  # deleted while its folder was listed
                yield _local_file(entry.path, entry.stat())


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator["os.DirEntry[str]"]:
    """List the files below a folder that aren't hidden. Links are followed, except to a folder that holds them."""
    found = Path(folder).stat()
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, (*above, identity))
            elif entry.is_file():
                yield entry


def _local_file(path: str, found: os.stat_result) -> InputFile:
    os.fsencode(path).decode()  # raises if the name isn't UTF-8, and so can't be a URI
    return InputFile(f"file://{path}", found.st_size, local_fingerprint(found))


def local_fingerprint(found: os.stat_result) -> str:
    """Identify the version of a local file by its size and the time of its last change."""
    return f"{found.st_size:x}-{found.st_mtime_ns:x}"


def _list_s3(location: str, bucket: str, path: str) -> Iterator[InputFile]:
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
    literal = _GLOB_SIGN.split(path, maxsplit=1)[0]
    base = literal[: literal.rfind("/") + 1]
    if literal == path or (base and not _holds_any(client, bucket, base)):
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
    return InputFile(f"s3://{bucket}/{key}", size, s3_fingerprint(size, etag))


def s3_fingerprint(size: int, etag: str) -> str:
    """Identify the version of an S3 object by its size and ETag."""
    bare = etag.strip('"')
    return f"{size:x}-{bare}"


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    if "@" in bucket or ":" in bucket:
        # The URI isn't repeated, because it may hold a secret.
        raise RequestError("An s3:// input has a user or password in it. Use the AWS SDK's own settings instead.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise RequestError(f"{uri} names no bucket. An input on S3 is s3://bucket/key.")
    return bucket, key


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
