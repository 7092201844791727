"""Files to read, by URI: what a path, folder, glob or URI names, each with a fingerprint that changes when it does."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsspec.utils import glob_translate

from infra.errors import RequestError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_GLOB_SIGN = re.compile(r"[*?\[]")


class InputNotFound(RequestError):
    """Nothing is there that could be read."""


@dataclass(frozen=True)
class InputFile:
    """A file that is to be read."""

    uri: str
    size: int
    """Bytes."""
    fingerprint: str
    """Size and time of the last change; on S3, size and ETag."""


def input_uri(location: str) -> str:
    """Turn what a person types into a URI: a path becomes `file:///…`, absolute and without `..`.

    One file then has one URI, whatever folder it was named from; links are not resolved.
    """
    if "://" in location:
        return location
    # Unlike Path.expanduser, this leaves a name that begins with '~' and is no user's as it is.
    return "file://" + os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The `pyarrow.fs.FileSystem` and the path in it of a URI.

    An S3 file system is to be asked for anew for each file, and in each process: its credentials may be of this moment.

    Raises:
        RequestError: the URI's scheme is none that can be read, or it names another host, or S3 is not set up.
    """
    from pyarrow import fs

    scheme, _, rest = uri.partition("://")
    if scheme.lower() == "file":
        # The path is taken as it is written: names may hold spaces, '%', '#' and '?', and are not percent-encoded.
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise RequestError(f"{uri} names the host {host}: a file URI has three slashes, file:///{rest}")
        return fs.LocalFileSystem(), f"/{path}"
    if scheme.lower() == "s3":
        bucket, key = _bucket_and_key(uri)
        with _clear_s3_errors(uri, bucket):
            from infra.object_store.s3_configuration import s3_connection

            return s3_connection().arrow_filesystem(), f"{bucket}/{key}"
    raise RequestError(f"{uri}: only file:// and s3:// URIs and local paths can be read.")


def list_input_files(location: str) -> Iterator[InputFile]:
    """List the files that a path or URI names: a file, a folder with all below it, or a glob (`*`, `?`, `[…]`, `**`).

    Hidden files and folders (names that begin with `.` or `_`) are passed over, in folders and globs. The order is that
    of the paths. On S3 a folder is a prefix up to a slash, listed as it is read, whatever the number of its objects.

    Raises:
        InputNotFound: there is no such file or folder.
        RequestError: it can't be listed: no rights, an invalid glob, a name that is not UTF-8.
    """
    from pyarrow import fs

    if not location:
        raise InputNotFound("An input is empty: name a file, a folder or a glob.")
    uri = input_uri(location)
    if uri.lower().startswith("s3://"):
        bucket, path = _bucket_and_key(uri)
        with _clear_s3_errors(location, bucket), _clear_errors(location):
            yield from _list_s3(location, bucket, path)
        return
    filesystem, path = filesystem_of(uri)
    pattern = None
    base = path
    with _clear_errors(location):
        if _GLOB_SIGN.search(path) and filesystem.get_file_info(path).type == fs.FileType.NotFound:
            pattern = re.compile(glob_translate(path))
            base = _GLOB_SIGN.split(path, maxsplit=1)[0].rpartition("/")[0] or "/"
        info = filesystem.get_file_info(base)
    if info.type == fs.FileType.File and pattern is None:
        yield _input_file(info)
        return
    if info.type != fs.FileType.Directory:
        raise InputNotFound(f"{location}: there is no such file or folder.")
    with _clear_errors(location):
        selected = sorted(filesystem.get_file_info(fs.FileSelector(base, recursive=True)), key=lambda entry: entry.path)
    for found in selected:
        hidden = _is_hidden(found.path[len(base) :])
        if found.type == fs.FileType.File and not hidden and (pattern is None or pattern.fullmatch(found.path)):
            yield _input_file(found)


def _list_s3(location: str, bucket: str, path: str) -> Iterator[InputFile]:
    from infra.object_store.s3_configuration import s3_connection

    client = s3_connection().client
    named = _named_object(client, bucket, path)
    if named is not None:
        yield named
        return
    folder = f"{path.rstrip('/')}/" if path else ""
    if _holds_any(client, bucket, folder):
        for file in _listed(client, bucket, folder):
            if not _is_hidden(_key_of(file)[len(folder) :]):
                yield file
        return
    literal = _GLOB_SIGN.split(path, maxsplit=1)[0]
    base = literal[: literal.rfind("/") + 1]
    if literal == path or (base and not _holds_any(client, bucket, base)):
        raise InputNotFound(f"{location}: there is no such object, and none below such a prefix.")
    pattern = re.compile(glob_translate(path))
    for file in _listed(client, bucket, literal):
        if not _is_hidden(_key_of(file)[len(base) :]) and pattern.fullmatch(_key_of(file)):
            yield file


def _named_object(client: "S3Client", bucket: str, key: str) -> InputFile | None:
    from botocore.exceptions import ClientError

    from infra.object_store.s3_errors import http_status

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


def _listed(client: "S3Client", bucket: str, prefix: str) -> Iterator[InputFile]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", []):
            if not found["Key"].endswith("/"):  # what some tools put in the place of a folder
                yield _s3_file(bucket, found["Key"], found["Size"], found["ETag"])


def _s3_file(bucket: str, key: str, size: int, etag: str) -> InputFile:
    bare = etag.strip('"')
    return InputFile(uri=f"s3://{bucket}/{key}", size=size, fingerprint=f"{size:x}-{bare}")


def _key_of(file: InputFile) -> str:
    return _bucket_and_key(file.uri)[1]


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    if "@" in bucket or ":" in bucket:
        # Not repeated: what stands there may be a secret.
        raise RequestError("An s3:// input has a user or password in it; leave those to the AWS SDK's own settings.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise RequestError(f"{uri} names no bucket: an input on S3 is s3://bucket/key.")
    return bucket, key


def _is_hidden(inside: str) -> bool:
    return any(part.startswith((".", "_")) for part in inside.strip("/").split("/"))


@contextmanager
def _clear_s3_errors(location: str, bucket: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    from infra.object_store.s3_configuration import s3_connection
    from infra.object_store.s3_errors import explain

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        try:
            endpoint = s3_connection().endpoint
        except BotoCoreError:  # that is what is being explained
            endpoint = "the server"
        explanation = explain(error, bucket=bucket, endpoint=endpoint)
    else:
        return
    # Without the cause: a credential process's output may be in it.
    raise RequestError(f"{location} can't be read: {explanation}") from None


@contextmanager
def _clear_errors(location: str) -> Iterator[None]:
    try:
        yield
    except RequestError:  # a ValueError too
        raise
    except UnicodeDecodeError as error:
        raise RequestError(f"{location} holds a file whose name is not UTF-8: {error.object!r}. Rename it.") from None
    except (OSError, ValueError, re.error) as error:  # ValueError: a name with a NUL, or a glob like `a**b`
        raise RequestError(f"{location} can't be listed: {error}.") from None


def _input_file(info: Any) -> InputFile:
    return InputFile(uri=f"file://{info.path}", size=info.size, fingerprint=f"{info.size:x}-{info.mtime_ns:x}")
