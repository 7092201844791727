# ruff: noqa: D102 (ObjectStore says what its methods do)
"""Objects in an S3 bucket, on AWS or any server with the same protocol: `s3://bucket/prefix`.

boto3 reads and writes. pyarrow's own S3 file system reads Parquet, and delta-rs reads and writes Delta tables. The
server must keep two promises: PUT is atomic, and `If-None-Match` and `If-Match` are honoured. Some servers overwrite
regardless, so the second is tested before it is relied on.
"""

import base64
import hashlib
import io
import itertools
import random
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from infra.errors import JobError, RequestError
from infra.storage.object_store.delta_errors import missing_file_in, s3_error_in, text_of
from infra.storage.object_store.interface import (
    ConnectionBroken,
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
from infra.storage.object_store.s3_configuration import MAX_ATTEMPTS, S3Connection, s3_connection
from infra.storage.object_store.s3_errors import (
    DAMAGED_ON_THE_WAY,
    error_code,
    explain,
    http_status,
    is_server_failure,
)
from infra.storage.retries import retry_on

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 8 * 2**20
"""Largest object that is published in one PUT, and size of the parts of larger ones."""
_PARTS_IN_FLIGHT = 4
"""Parts in transfer while the next one is written. Together they are all that an upload holds in memory (40 MiB)."""
_PARTS_OF_A_SIZE = 1000
"""Number of parts of the same size. Then parts grow by PART_BYTES, so that the 10,000 parts that S3 allows hold
430 GiB. Some servers require parts of the same size."""

_SCRATCH = (".write-check/", ".conditional-write-check/")

_SECRET_OPTIONS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "proxy_url")

_ROOT = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,254})(?:/(.*))?")
_WRITE_ID = "write-id"
"""Metadata that tells a writer whether an object is its own, or whether another writer has replaced it."""


def _was_damaged_on_the_way(error: BaseException) -> bool:
    return isinstance(error, ClientError) and error_code(error) in DAMAGED_ON_THE_WAY


class _BodyCutShort(Exception):
    """An answer ended before its last byte."""


class S3ObjectStore(ObjectStore):
    """An object store under a prefix of an existing bucket.

    It holds only its root, so it is cheap to create, can be pickled, and can be shared between threads. The clients
    belong to the process (`s3_connection`).
    """

    def __init__(self, root: str) -> None:
        found = _ROOT.fullmatch(root.rstrip("/"))
        if not found or (found[2] and not is_key(found[2])):
            # The root isn't repeated, because people put credentials in the place of the bucket's name.
            raise RequestError("FMNIST_STORE: a store on S3 is s3://bucket or s3://bucket/prefix.")
        self.root = root.rstrip("/")
        self._bucket = found[1]
        self._prefix = f"{found[2]}/" if found[2] else ""

    def check_writable(self) -> None:
        key, data = f"{self._prefix}{_SCRATCH[0]}{uuid4().hex}", uuid4().bytes
        with self._explained():
            self._put(key, data)
            try:
                if self._get(key)[0] != data:
                    raise StoreUnavailable(
                        f"The store {self.root} can't be used: a new object was read back with other bytes. Check the "
                        "server."
                    )
            finally:
                self._client.delete_object(Bucket=self._bucket, Key=key)

    def check_conditional_writes(self) -> None:
        self._etag_is_quoted()

    def stat(self, key: str) -> ObjectStat | None:
        full_key = self._full(key)
        with self._explained():
            try:
                found = self._client.head_object(Bucket=self._bucket, Key=full_key)
            except ClientError as error:
                if http_status(error) != 404:
                    raise
                self._require_bucket()
                return None
        return ObjectStat(key, found["ContentLength"], _bare(found["ETag"]), found["LastModified"])

    def read(self, key: str) -> bytes:
        return self.read_with_etag(key)[0]

    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        full_key = self._full(key)
        with self._explained():
            try:
                return self._get(full_key)
            except ClientError as error:
                if http_status(error) != 404 or error_code(error) == "NoSuchBucket":
                    raise
                raise ObjectNotFound(f"{self.uri(key)} doesn't exist.") from None

    def create(self, key: str, data: bytes) -> None:
        full_key = self._full(key)
        self.check_conditional_writes()
        with self._explained():
            if not self._put_if(full_key, data, IfNoneMatch="*"):
                raise ObjectExists(f"{self.uri(key)} already exists.")

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        full_key = self._full(key)
        form = '"{}"' if self._etag_is_quoted() else "{}"
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": form.format(seen)}
        with self._explained():
            if not self._put_if(full_key, data, **condition):
                raise SwapConflict(f"Another process has changed {self.uri(key)}.")

    @contextmanager
    def publish(self, key: str) -> Iterator[Publication]:
        upload = _Upload(self, self._full(key))
        try:
            yield cast(Publication, upload)
            upload.finish()
        except BaseException:
            upload.abort()
            raise

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectStat]:
        start = self._prefix + checked_prefix(prefix)
        more: dict[str, Any] = {"StartAfter": self._prefix + after} if after else {}
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start, **more)
            for page in pages:
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(self._prefix)
                    # Skips folder markers, this module's scratch objects, and names that can't be our keys.
                    if is_key(key):
                        yield ObjectStat(key, found["Size"], _bare(found["ETag"]), found["LastModified"])

    def list_folders(self, prefix: str) -> Iterator[str]:
        start = self._prefix + checked_prefix(prefix)
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=start, Delimiter="/"
            )
            for page in pages:
                for found in page.get("CommonPrefixes", []):
                    name = found["Prefix"].removeprefix(start).removesuffix("/")
                    if is_key(name):
                        yield name

    def delete(self, key: str) -> None:
        full_key = self._full(key)
        with self._explained():
            self._client.delete_object(Bucket=self._bucket, Key=full_key)

    def list_unfinished(self, before: datetime) -> Iterator[Unfinished]:
        with self._explained():
            yield from self._uploads_begun(before)
            for scratch in _SCRATCH:
                start = self._prefix + scratch
                for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start):
                    for found in page.get("Contents", []):
                        if found["LastModified"] < before:
                            key = found["Key"].removeprefix(self._prefix)
                            yield Unfinished(key, found["Size"], found["LastModified"], "", is_scratch=True)

    def discard(self, unfinished: Unfinished) -> None:
        full_key = self._prefix + unfinished.key
        with self._explained():
            if unfinished.token:
                self._abort(self._full(unfinished.key), unfinished.token)
            elif unfinished.key.startswith(_SCRATCH):
                self._client.delete_object(Bucket=self._bucket, Key=full_key)

    def arrow(self, key: str) -> tuple[Any, str]:
        full_key = self._full(key)
        with self._explained():
            return self._connection.arrow_filesystem(), f"{self._bucket}/{full_key}"

    def delta(self, prefix: str) -> DeltaLocation:
        start = self._prefix + checked_prefix(prefix)
        with self._explained():
            return DeltaLocation(
                f"s3://{self._bucket}/{start.removesuffix('/')}", self._connection.delta_options(self._bucket)
            )

    def sync_delta(self, prefix: str, version: int, *, files: bool = True) -> None:
        pass

    def delta_failure(self, error: Exception) -> RequestError | JobError | None:
        text = text_of(error)
        if (missing := missing_file_in(text)) and "NoSuchBucket" not in text:
            return ObjectNotFound(
                f"s3://{self._bucket}/{missing} doesn't exist, but the table names it. Restore it from a backup."
            )
        found = s3_error_in(text, self._endpoint())
        if found:
            failure = self._failure(found)
            return ConnectionBroken(str(failure)) if type(found) is HTTPClientError else failure
        if isinstance(error, OSError):
            return StoreUnavailable(f"The store {self.root} can't be used: delta-rs says {self._without_secrets(text)}")
        return None

    @property
    def _connection(self) -> S3Connection:
        return s3_connection()

    @property
    def _client(self) -> "S3Client":
        return self._connection.client

    def _full(self, key: str) -> str:
        return self._prefix + checked_key(key)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the SDK's errors into one line that names the store."""
        try:
            yield
        except (BotoCoreError, ClientError, _BodyCutShort) as error:
            cause = cast(BotoCoreError, error.__cause__) if isinstance(error, _BodyCutShort) else error
        else:
            return
        # Without the cause, which may hold the output of a credential process.
        raise self._failure(cause) from None

    def _failure(self, cause: BotoCoreError | ClientError) -> StoreUnavailable | StoreMisconfigured:
        failure = StoreUnavailable if is_server_failure(cause) else StoreMisconfigured
        explanation = explain(cause, bucket=self._bucket, endpoint=self._endpoint())
        return failure(f"The store {self.root} can't be used: {explanation}")

    def _without_secrets(self, text: str) -> str:
        for name, value in self._connection.delta_options(self._bucket).items():
            if name in _SECRET_OPTIONS:
                text = text.replace(value, "…")
        return text[:500]

    def _endpoint(self) -> str:
        try:
            return self._connection.endpoint
        except BotoCoreError:  # the error that is being explained
            return "the server"

    def _require_bucket(self) -> None:
        """Raise if the bucket is missing. The answer to HEAD doesn't say whether the object or the bucket is."""
        connection = self._connection
        if self._bucket in connection.buckets_seen:
            return
        try:
            connection.client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if http_status(error) == 404:
                raise
        connection.buckets_seen.add(self._bucket)

    @retry_on(_BodyCutShort, attempts=MAX_ATTEMPTS, longest_wait_seconds=5)
    def _get(self, full_key: str) -> tuple[bytes, str]:
        answer = self._client.get_object(Bucket=self._bucket, Key=full_key)
        try:
            return answer["Body"].read(), _bare(answer["ETag"])
        except (HTTPClientError, IncompleteReadError) as error:  # botocore retries only up to the first byte
            raise _BodyCutShort from error

    def _put_if(self, full_key: str, data: bytes, **condition: str) -> bool:
        """Put an object under a condition. Return whether the condition held, and so the object is ours."""
        write_id = uuid4().hex
        for attempt in itertools.count(1):
            try:
                self._put(full_key, data, write_id=write_id, **condition)
            except ClientError as error:
                status = http_status(error)
                if status == 409 and attempt < MAX_ATTEMPTS:  # two concurrent writers, both asked to retry
                    time.sleep(0.05 * 2**attempt * random.random())  # noqa: S311 (chance, not secrets)
                    continue
                if status == 412 or (status == 404 and error_code(error) != "NoSuchBucket"):
                    # Our own first request may have succeeded, its answer been lost, and the SDK have retried.
                    return self._is_written_by(full_key, write_id)
                raise
            return True
        raise AssertionError  # for mypy: the loop doesn't end

    def _is_written_by(self, full_key: str, write_id: str) -> bool:
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=full_key)
        except ClientError as error:
            if http_status(error) == 404:
                return False
            raise
        return _write_id_of(found) == write_id

    @retry_on(_was_damaged_on_the_way, attempts=MAX_ATTEMPTS, longest_wait_seconds=5)
    def _put(self, full_key: str, data: bytes | bytearray, *, write_id: str = "", **condition: str) -> str:
        """Put an object in one request, and check that the same bytes arrived. Return its ETag."""
        md5, sha256 = _md5(data), b""
        write_id = write_id or uuid4().hex
        more: dict[str, Any] = {**condition, "Metadata": {_WRITE_ID: write_id}}
        if self._sends_checksums:
            sha256 = hashlib.sha256(data).digest()
            more["ChecksumSHA256"] = _base64(sha256)
        else:
            more["ContentMD5"] = _base64(md5)
        answer = self._client.put_object(Bucket=self._bucket, Key=full_key, Body=cast(bytes, data), **more)
        if _bare(answer["ETag"]) == md5.hex() or (sha256 and answer.get("ChecksumSHA256") == _base64(sha256)):
            return _bare(answer["ETag"])
        self._verify(full_key, write_id, [_Part(len(data), md5)], etag=_bare(answer["ETag"]))
        return _bare(answer["ETag"])

    @property
    def _sends_checksums(self) -> bool:
        return self._connection.configuration.checksum_mode == "when_supported"

    def _begin_parts(self, full_key: str, write_id: str) -> str:
        more: dict[str, Any] = {"ChecksumAlgorithm": "CRC32"} if self._sends_checksums else {}
        answer = self._client.create_multipart_upload(
            Bucket=self._bucket, Key=full_key, Metadata={_WRITE_ID: write_id}, **more
        )
        return answer["UploadId"]

    @retry_on(_was_damaged_on_the_way, attempts=MAX_ATTEMPTS, longest_wait_seconds=5)
    def _put_part(self, full_key: str, upload_id: str, number: int, data: bytes | bytearray) -> "_Part":
        """Put one part, numbered from 1. The server checks its MD5 or CRC."""
        md5 = _md5(data)
        more: dict[str, Any] = {"ChecksumAlgorithm": "CRC32"} if self._sends_checksums else {"ContentMD5": _base64(md5)}
        answer = self._client.upload_part(
            Bucket=self._bucket, Key=full_key, UploadId=upload_id, PartNumber=number, Body=cast(bytes, data), **more
        )
        return _Part(len(data), md5, answer["ETag"], answer.get("ChecksumCRC32"))

    def _complete_parts(self, full_key: str, upload_id: str, write_id: str, parts: Sequence["_Part"]) -> str:
        """Turn the parts into an object, and check that it holds what was sent. Return the ETag of what is there.

        Another writer may have replaced the object by the time of the check. That is a success: the later one wins.
        """
        unknown: ClientError | None = None
        listed = [part.listed(number) for number, part in enumerate(parts, 1)]
        try:
            # The ETag of its answer isn't used: some servers compute it from the request, not from what they stored.
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=full_key, UploadId=upload_id, MultipartUpload={"Parts": listed}
            )
        except ClientError as error:
            if error_code(error) != "NoSuchUpload":
                raise
            # Our own first request may have succeeded, its answer been lost, and the SDK have retried.
            unknown = error
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=full_key)
        except ClientError as error:
            raise unknown or error from None
        if _bare(found["ETag"]) == _etag_of(parts) and found["ContentLength"] == sum(part.size for part in parts):
            return _bare(found["ETag"])
        owner = _write_id_of(found)
        if not unknown and owner not in ("", write_id):
            return _bare(found["ETag"])
        if unknown and owner != write_id:
            # The object may be older than this upload, which was aborted. It is enough if it holds the same bytes.
            if self._read_back(full_key, parts).is_same:
                return _bare(found["ETag"])
            raise unknown
        self._verify(full_key, write_id, parts)
        return _bare(found["ETag"])

    def _abort(self, full_key: str, upload_id: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=full_key, UploadId=upload_id)
        except ClientError as error:
            if error_code(error) != "NoSuchUpload":
                raise

    def _uploads_begun(self, before: datetime) -> Iterator[Unfinished]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix)
        try:
            for page in pages:
                for found in page.get("Uploads", []):
                    key = found["Key"].removeprefix(self._prefix)
                    if is_key(key) and found["Initiated"] < before:
                        size = self._size_of_parts(found["Key"], found["UploadId"])
                        yield Unfinished(key, size, found["Initiated"], found["UploadId"])
        except ClientError as error:
            if http_status(error) != 501:  # the server can't list uploads
                raise

    def _size_of_parts(self, full_key: str, upload_id: str) -> int:
        pages = self._client.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=full_key, UploadId=upload_id)
        try:
            return sum(part["Size"] for page in pages for part in page.get("Parts", []))
        except ClientError as error:
            if error_code(error) == "NoSuchUpload":  # completed or aborted after it was listed
                return 0
            raise

    def _verify(self, full_key: str, write_id: str, parts: Sequence["_Part"], *, etag: str = "") -> None:
        """Read back a written object if the server returns no usable digest (encryption with customer keys, …).

        It is never removed, because it may be another writer's by now.

        Args:
            full_key: the object's key in the bucket.
            write_id: the write that is verified.
            parts: digests of the bytes that were sent.
            etag: the ETag in the answer to the write, if the server computes it from what it stored.
        """
        found = self._read_back(full_key, parts)
        is_overtaken = found.write_id != write_id if found.write_id else bool(etag) and found.etag != etag
        if found.is_same or is_overtaken:
            return
        raise StoreUnavailable(
            f"The store {self.root} can't be used: s3://{self._bucket}/{full_key} holds other bytes than were sent. "
            "Check the server, and leave AWS_REQUEST_CHECKSUM_CALCULATION at when_required. The object was left as it "
            "is. Write it again, or remove it."
        )

    @retry_on(_BodyCutShort, attempts=MAX_ATTEMPTS, longest_wait_seconds=5)
    def _read_back(self, full_key: str, parts: Sequence["_Part"]) -> "_ReadBack":
        answer = self._client.get_object(Bucket=self._bucket, Key=full_key)
        try:
            is_same = all(_md5(answer["Body"].read(part.size)) == part.md5 for part in parts if part.size)
            is_same = is_same and not answer["Body"].read(1)
        except (HTTPClientError, IncompleteReadError) as error:
            raise _BodyCutShort from error
        return _ReadBack(is_same, _write_id_of(answer), _bare(answer["ETag"]))

    def _etag_is_quoted(self) -> bool:
        """Whether `If-Match` takes the ETag in quotes, as the standard says. Ceph 16 compares it without quotes.

        Tested once in a process, together with whether the server honours conditions at all.

        Raises:
            StoreMisconfigured: the server ignores conditions, so two writers would overwrite each other.
        """
        with self._explained():
            known = self._connection.etag_is_quoted
            if self.root not in known:
                known[self.root] = self._try_conditions()
        return known[self.root]

    def _try_conditions(self) -> bool:
        key = f"{self._prefix}{_SCRATCH[1]}{uuid4().hex}"
        try:
            self._is_refused(key, IfNoneMatch="*")
            honoured = self._is_refused(key, IfNoneMatch="*") and self._is_refused(key, IfMatch=f'"{_md5(b"").hex()}"')
            for form, quoted in (('"{}"', True), ("{}", False)):
                etag = _bare(self._client.head_object(Bucket=self._bucket, Key=key)["ETag"])
                if honoured and not self._is_refused(key, IfMatch=form.format(etag)):
                    return quoted
        finally:
            with suppress(BotoCoreError, ClientError):  # the scratch object is hidden, and harmless if it stays
                self._client.delete_object(Bucket=self._bucket, Key=key)
        raise StoreMisconfigured(
            f"The store {self.root} can't be used: {self._endpoint()} ignores conditional requests (If-None-Match, "
            "If-Match), so two runs could overwrite each other's models unnoticed. Use a server that honours them, "
            "such as AWS, Ceph or MinIO."
        )

    def _is_refused(self, full_key: str, **condition: str) -> bool:
        try:
            self._put(full_key, b"conditional", **condition)
        except ClientError as error:
            if http_status(error) in (409, 412):
                return True
            if http_status(error) != 501:  # "not implemented" is honest, but as useless as overwriting
                raise
        return False


@dataclass(frozen=True)
class _Part:
    """Size and digests of bytes that were sent."""

    size: int
    md5: bytes
    etag: str = ""
    """The server's ETag, with its quotes."""
    crc32: str | None = None
    """The server's CRC, if the SDK sent one."""

    def listed(self, number: int) -> "CompletedPartTypeDef":
        """Describe the part for the request that completes an upload."""
        entry: CompletedPartTypeDef = {"PartNumber": number, "ETag": self.etag}
        if self.crc32:
            entry["ChecksumCRC32"] = self.crc32
        return entry


@dataclass(frozen=True)
class _ReadBack:
    """What an object turned out to be when it was read back."""

    is_same: bool
    """Whether it holds the bytes that were sent."""
    write_id: str
    """The write that created it. Empty if the server keeps no metadata, or another program wrote it."""
    etag: str


class _Upload(io.RawIOBase):
    """A stream that becomes an object, in one PUT if it is short, or else in parts sent in the background.

    It keeps no copy of the bytes. The MD5 of each part, computed when it is sent, shows whether it arrived. An upload
    whose process dies leaves parts but no object, and `list_unfinished` finds them.
    """

    def __init__(self, store: S3ObjectStore, full_key: str) -> None:
        self._store, self._full_key = store, full_key
        self._buffer = bytearray()
        self._written = 0
        self._write_id, self._upload_id = uuid4().hex, ""
        self.etag = ""
        self._threads: ThreadPoolExecutor | None = None
        self._in_flight: deque[Future[_Part]] = deque()
        self._sent: list[_Part] = []

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        """Take bytes, and return when there is room for more.

        Raises:
            StoreUnavailable: a part could not be sent.
        """
        view = memoryview(data).cast("B")
        taken = len(view)
        while view:
            room = self._part_bytes() - len(self._buffer)
            if not room:  # only now it is certain that more bytes follow
                self._send_part()
                continue
            self._buffer += view[:room]
            view = view[room:]
        self._written += taken
        return taken

    def finish(self) -> None:
        """Turn the written bytes into the object.

        Raises:
            StoreUnavailable: that failed, or the object holds other bytes.
        """
        with self._store._explained():
            if self._threads is None:
                self.etag = self._store._put(self._full_key, self._buffer, write_id=self._write_id)
                return
        self._send_part()
        with self._store._explained():
            while self._in_flight:
                self._sent.append(self._in_flight.popleft().result())
            self.etag = self._store._complete_parts(self._full_key, self._upload_id, self._write_id, self._sent)
        self._threads.shutdown()

    def abort(self) -> None:
        """Drop the written bytes, if the server can be reached."""
        if self._threads is None:
            return
        self._threads.shutdown(cancel_futures=True)  # a part that arrives after the abort would stay
        with suppress(BotoCoreError, ClientError):
            self._store._abort(self._full_key, self._upload_id)

    def _part_bytes(self) -> int:
        return PART_BYTES * (1 + (len(self._sent) + len(self._in_flight)) // _PARTS_OF_A_SIZE)

    def _send_part(self) -> None:
        with self._store._explained():
            if self._threads is None:
                self._upload_id = self._store._begin_parts(self._full_key, self._write_id)
                self._threads = ThreadPoolExecutor(_PARTS_IN_FLIGHT)
            if len(self._in_flight) == _PARTS_IN_FLIGHT:
                self._sent.append(self._in_flight.popleft().result())
        number = len(self._sent) + len(self._in_flight) + 1
        self._in_flight.append(
            self._threads.submit(self._store._put_part, self._full_key, self._upload_id, number, self._buffer)
        )
        self._buffer = bytearray()


def _bare(etag: str) -> str:
    return etag.strip('"')


def _write_id_of(answer: Any) -> str:
    """Return the write id in the answer to HEAD or GET, or an empty string if it has none."""
    # Some servers capitalize the names of metadata.
    return next((value for name, value in answer.get("Metadata", {}).items() if name.lower() == _WRITE_ID), "")


def _md5(data: bytes | bytearray) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _etag_of(parts: Sequence["_Part"]) -> str:
    """Return the ETag that S3 gives to an object put in parts."""
    return f"{_md5(b''.join(part.md5 for part in parts)).hex()}-{len(parts)}"


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
