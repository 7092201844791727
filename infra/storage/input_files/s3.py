"""Input files on S3."""

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fsspec.utils import glob_translate

from infra.errors import RequestError
from infra.storage.input_files.interface import (
    DENIED,
    GLOB_SIGN,
    VANISHED,
    InputFile,
    InputNotFound,
    InputsUnavailable,
    InputUnreadable,
    check_version,
)
from infra.storage.input_files.passed_over import PassOver, object_kind
from infra.storage.object_store.s3_configuration import MAX_ATTEMPTS
from infra.storage.uris import bucket_and_key, percent_encode

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def list_files(location: str, bucket: str, path: str, pass_over: PassOver) -> Iterator[InputFile]:
    """List the objects that a location names, see `input_files.list_input_files`."""
    with _clear_errors(location, bucket):
        from infra.storage.object_store.s3_configuration import s3_connection

        client = s3_connection().client
        named = _named_object(client, bucket, path)
        if named is not None:
            yield named
            return
        folder = f"{path.rstrip('/')}/" if path else ""
        if _holds_any(client, bucket, folder):
            yield from _usable(_listed(client, bucket, folder), f"s3://{bucket}/", folder, pass_over)
            return
        yield from _list_s3_glob(location, bucket, path, pass_over)


def _list_s3_glob(location: str, bucket: str, path: str, pass_over: PassOver) -> Iterator[InputFile]:
    from infra.storage.object_store.s3_configuration import s3_connection

    client = s3_connection().client
    literal = GLOB_SIGN.split(path, maxsplit=1)[0]
    base = literal[: literal.rfind("/") + 1]
    # A sign may also be percent-encoded in the location, and then it isn't a glob.
    if not GLOB_SIGN.search(location) or literal == path or (base and not _holds_any(client, bucket, base)):
        raise InputNotFound(f"{location}: no such object or prefix.")
    pattern = re.compile(glob_translate(path))
    matches = (found for found in _listed(client, bucket, literal) if pattern.fullmatch(found[0]))
    yield from _usable(matches, f"s3://{bucket}/", base, pass_over)


def _usable(
    listed: Iterable[tuple[str, InputFile]], bucket: str, base: str, pass_over: PassOver
) -> Iterator[InputFile]:
    """Yield the objects whose keys below the base don't say that they hold no image. Count each folder once."""
    last = None
    for key, file in listed:
        if key == base and not file.size:  # it marks the listed folder itself
            continue
        reason = object_kind(key[len(base) :], file.size)
        if reason is None:
            yield file
            continue
        kind, blamed = reason
        if blamed != last:
            pass_over(kind, f"{bucket}{base}{blamed}")
        last = blamed


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
            yield found["Key"], _s3_file(bucket, found["Key"], found["Size"], found["ETag"])


def _s3_file(bucket: str, key: str, size: int, etag: str) -> InputFile:
    return InputFile(f"s3://{bucket}/{percent_encode(key)}", size, s3_fingerprint(size, etag))


def s3_fingerprint(size: int, etag: str) -> str:
    """Identify the version of an S3 object by its size and ETag."""
    bare = etag.strip('"')
    return f"{size:x}-{bare}"


def stat_file(uri: str) -> InputFile | None:
    """Look up an object, see `input_files.stat_input`."""
    bucket, key = _place(uri)
    with _clear_errors(uri, bucket):
        from infra.storage.object_store.s3_configuration import s3_connection

        return _named_object(s3_connection().client, bucket, key)


def read_file(uri: str, fingerprint: str, largest: int) -> bytes:
    """Read an object, see `input_files.read_input`."""
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

    from infra.storage.object_store.s3_configuration import s3_connection
    from infra.storage.object_store.s3_errors import error_code, http_status

    bucket, key = _place(uri)
    attempts = itertools.count(1)
    with _clear_errors(uri, bucket):
        client = s3_connection().client
        while True:
            try:
                answer = client.get_object(Bucket=bucket, Key=key)
                size = answer["ContentLength"]
                check_version(s3_fingerprint(size, answer["ETag"]), fingerprint, size, largest)
                return answer["Body"].read()
            except (HTTPClientError, IncompleteReadError):  # botocore retries only up to the first byte
                if next(attempts) == MAX_ATTEMPTS:
                    raise
            except ClientError as error:
                if http_status(error) == 404 and error_code(error) != "NoSuchBucket":
                    raise InputUnreadable(VANISHED) from None
                if http_status(error) == 403 and error_code(error) == "AccessDenied":
                    raise InputUnreadable(DENIED) from None
                raise


def open_file(uri: str, fetch: int) -> Any:
    """Open an object, see `input_files.open_input`."""
    from pyarrow import BufferReader

    _place(uri)
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
        if "ACCESSDENIED" in str(error):
            raise InputUnreadable(DENIED) from None
        raise InputsUnavailable(f"{uri} can't be read: {error}.") from None


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Return the `pyarrow.fs.S3FileSystem` of an object and its path there."""
    bucket, key = bucket_and_key(uri)
    with _clear_errors(uri, bucket):
        from infra.storage.object_store.s3_configuration import s3_connection

        return s3_connection().arrow_filesystem(), f"{bucket}/{key}"


def _place(uri: str) -> tuple[str, str]:
    try:
        return bucket_and_key(uri)
    except RequestError as error:
        raise InputUnreadable(f"unreadable: {error}") from None


@contextmanager
def _clear_errors(location: str, bucket: str) -> Iterator[None]:
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
