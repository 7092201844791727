"""Input files on S3."""

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fsspec.utils import glob_translate

from infra.errors import RequestError
from infra.settings import load_settings
from infra.storage.input_files.interface import (
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
    from botocore.exceptions import ClientError

    from infra.storage.object_store.s3_configuration import S3Connection


def list_files(location: str, bucket: str, path: str, pass_over: PassOver) -> Iterator[InputFile]:
    """List the objects that a location names, see `input_files.list_input_files`."""
    with _clear_errors(location, bucket):
        connection = _connection()
        named = _named_object(connection, bucket, path)
        if named is not None and named.size:
            yield named
            return
        folder = next((folder for folder in _folders(path) if _holds_any(connection, bucket, folder)), None)
        if folder is not None:
            listed = _listed(connection, bucket, folder)
            yield from _usable(listed, f"s3://{bucket}/", folder, pass_over)
            return
        if named is not None:  # an empty object, and not one that some tools create for a folder
            yield named
            return
        yield from _list_s3_glob(location, bucket, path, pass_over)


def _folders(path: str) -> list[str]:
    """Return the prefixes that a path can stand for. `a//` is one, but may be meant as `a/`."""
    if not path.endswith("/"):
        return [f"{path}/" if path else ""]
    return list(dict.fromkeys([path, f"{path.rstrip('/')}/"]))


def _list_s3_glob(location: str, bucket: str, path: str, pass_over: PassOver) -> Iterator[InputFile]:
    connection = _connection()
    literal = GLOB_SIGN.split(path, maxsplit=1)[0]
    base = literal[: literal.rfind("/") + 1]
    # A sign may also be percent-encoded in the location, and then it isn't a glob.
    if not GLOB_SIGN.search(location) or literal == path or (base and not _holds_any(connection, bucket, base)):
        raise InputNotFound(f"{location}: no such object or prefix.")
    pattern = re.compile(glob_translate(path))
    matches = (found for found in _listed(connection, bucket, literal) if pattern.fullmatch(found[0]))
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


def _named_object(connection: "S3Connection", bucket: str, key: str) -> InputFile | None:
    """Return the object with a key, even if reading it is refused."""
    from botocore.exceptions import ClientError

    from infra.storage.object_store.s3_errors import blame

    if not key or key.endswith("/"):
        return None
    try:
        found = _look_up(connection, bucket, key)
    except ClientError as error:
        if blame(error) != "object":
            raise
        # The prefix of a folder may be refused too, if the credentials only cover what is below it.
        listed = next(_listed(connection, bucket, key), None)
        return listed[1] if listed and listed[0] == key else None
    return _s3_file(bucket, key, *found) if found else None


def _holds_any(connection: "S3Connection", bucket: str, prefix: str) -> bool:
    options = connection.reading_options
    return bool(connection.client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1, **options).get("Contents"))


def _listed(connection: "S3Connection", bucket: str, prefix: str) -> Iterator[tuple[str, InputFile]]:
    pages = connection.client.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, **connection.reading_options):
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
    if not key or key.endswith("/"):
        return None
    with _clear_errors(uri, bucket):
        found = _look_up(_connection(), bucket, key)
        return _s3_file(bucket, key, *found) if found else None


def read_file(uri: str, fingerprint: str, largest: int) -> bytes:
    """Read an object, see `input_files.read_input`."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    bucket, key = _place(uri)
    attempts = itertools.count(1)
    with _clear_errors(uri, bucket):
        connection = _connection()
        while True:
            answer = connection.client.get_object(Bucket=bucket, Key=key, **connection.reading_options)
            size = answer["ContentLength"]
            with closing(answer["Body"]) as body:
                check_version(s3_fingerprint(size, answer["ETag"]), fingerprint, size, largest)
                try:
                    return body.read()
                except (HTTPClientError, IncompleteReadError):  # botocore retries only up to the first byte
                    if next(attempts) == MAX_ATTEMPTS:
                        raise


def open_file(uri: str, fetch: int) -> Any:
    """Open an object, see `input_files.open_input`."""
    from pyarrow import BufferReader

    from infra.storage.input_files.s3_reader import RangeReader, S3File, S3Object

    bucket, key = _place(uri)
    with _clear_errors(uri, bucket):
        connection = _connection()
        found = _look_up(connection, bucket, key) if key else None
        if found is None:
            raise InputUnreadable(VANISHED)
        size, etag = found
        version = S3Object(bucket, key, size, etag.strip('"'))
        reader = RangeReader(connection, version, partial(_clear_errors, uri, bucket))
        if size > fetch:
            return S3File(reader)
        with closing(reader):
            return BufferReader(reader.read())


def _connection() -> "S3Connection":
    from infra.storage.object_store.s3_configuration import input_connection

    return input_connection()


def _look_up(connection: "S3Connection", bucket: str, key: str) -> tuple[int, str] | None:
    """Return an object's size and ETag, or None if it doesn't exist.

    Raises:
        ClientError: the object or the request is refused, or there is no such bucket.
    """
    from botocore.exceptions import ClientError

    from infra.storage.object_store.s3_errors import has_no_code, http_status

    try:
        found = connection.client.head_object(Bucket=bucket, Key=key, **connection.reading_options)
    except ClientError as error:
        if not 400 <= http_status(error) < 500 or not has_no_code(error):
            raise
        if http_status(error) == 404 and bucket in connection.buckets_seen:
            return None
        return _look_up_by_reading(connection, bucket, key, error)
    connection.buckets_seen.add(bucket)
    return found["ContentLength"], found["ETag"]


def _look_up_by_reading(
    connection: "S3Connection", bucket: str, key: str, refused: "ClientError"
) -> tuple[int, str] | None:
    """Look up an object by reading a byte. The answer to HEAD has no body that says why it is refused."""
    from botocore.exceptions import ClientError

    from infra.storage.object_store.s3_errors import error_code, http_status

    try:
        found = connection.client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0", **connection.reading_options)
    except ClientError as error:
        if http_status(error) == 416:  # the object is empty, so there is no byte to read
            raise refused from None
        if http_status(error) == 404 and error_code(error) != "NoSuchBucket":
            connection.buckets_seen.add(bucket)
            return None
        raise
    with closing(found["Body"]):
        size = found.get("ContentRange", "").rpartition("/")[2]
        return int(size) if size.isdigit() else found["ContentLength"], found["ETag"]


def _place(uri: str) -> tuple[str, str]:
    try:
        return bucket_and_key(uri)
    except RequestError as error:
        raise InputUnreadable(f"unreadable: {error}") from None


@contextmanager
def _clear_errors(location: str, bucket: str) -> Iterator[None]:
    """Turn an error of botocore into one of inputs.

    Raises:
        InputUnreadable: S3 refuses the one object that was asked for.
        InputsUnavailable: the server or the network fails.
        RequestError: the credentials, the bucket or a setting is wrong.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    from infra.storage.input_files.s3_refusals import refusal
    from infra.storage.object_store.s3_configuration import InputSettings
    from infra.storage.object_store.s3_errors import explain, is_server_failure

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        reason = refusal(error) if isinstance(error, ClientError) else None
        if reason:
            raise InputUnreadable(reason) from None
        try:
            endpoint = _connection().endpoint
        except BotoCoreError:  # the error that is being explained
            endpoint = "the server"
        names = InputSettings.of(load_settings()).names
        explanation = explain(error, bucket=bucket, endpoint=endpoint, input_settings=names)
        failure = InputsUnavailable if is_server_failure(error) else RequestError
    else:
        return
    # Without the cause, which may hold the output of a credential process.
    raise failure(f"{location} can't be read: {explanation}") from None
