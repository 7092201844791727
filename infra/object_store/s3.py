# ruff: noqa: D102 (ObjectStore says what its methods do)
"""Objects in an S3 bucket, at AWS or at any server that speaks its protocol: `s3://bucket/prefix`.

boto3 reads and writes; pyarrow's own S3 file system reads Parquet. The server is trusted for two things only: that a
PUT is all or nothing, and that it heeds `If-None-Match` and `If-Match`. The second is tried before it is relied on,
since some servers overwrite regardless.
"""

import base64
import hashlib
import itertools
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from tenacity import retry, retry_if_exception, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from infra.errors import RequestError
from infra.object_store.interface import (
    ObjectExists,
    ObjectNotFound,
    ObjectStat,
    ObjectStore,
    StoreUnavailable,
    SwapConflict,
    checked_key,
    checked_prefix,
    is_key,
)
from infra.object_store.s3_configuration import MAX_ATTEMPTS, S3Connection, s3_connection
from infra.object_store.s3_errors import error_code, explain, http_status

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 8 * 2**20
"""What is published in one PUT, and the parts of what is larger. Up to this size it is held in memory meanwhile, beyond
in a temporary file."""

_ROOT = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,254})(?:/(.*))?")
_WRITE_ID = "write-id"
"""Metadata by which a writer tells its own object from another's with the same bytes."""


_DAMAGED_ON_THE_WAY = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"})
"""Codes with which a server refuses a body that it did not get whole; botocore does not ask again."""


def _was_damaged_on_the_way(error: BaseException) -> bool:
    return isinstance(error, ClientError) and error_code(error) in _DAMAGED_ON_THE_WAY


class _BodyCutShort(Exception):
    """An answer began, but did not come to its end."""


class S3ObjectStore(ObjectStore):
    """An object store under a prefix of a bucket, which must exist.

    Holds its root alone: it is cheap to make, may be pickled, and may be shared by threads. Clients belong to the
    process (`s3_connection`).
    """

    def __init__(self, root: str) -> None:
        found = _ROOT.fullmatch(root.rstrip("/"))
        if not found or (found[2] and not is_key(found[2])):
            # The root itself is not repeated: people put credentials where the bucket's name belongs.
            raise RequestError("FMNIST_STORE: a store on S3 is s3://bucket or s3://bucket/prefix.")
        self.root = root.rstrip("/")
        self._bucket = found[1]
        self._prefix = f"{found[2]}/" if found[2] else ""

    def check_writable(self) -> None:
        key, data = f"{self._prefix}.write-check/{uuid4().hex}", uuid4().bytes
        with self._explained():
            self._put(key, data)
            try:
                if self._get(key)[0] != data:
                    raise StoreUnavailable(
                        f"The store {self.root} can't be used: a new object did not read back as it was written. "
                        "Look at the server."
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
        return ObjectStat(key, found["ContentLength"], _bare(found["ETag"]))

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
                raise ObjectNotFound(f"There is no {self.uri(key)}") from None

    def create(self, key: str, data: bytes) -> None:
        full_key = self._full(key)
        self.check_conditional_writes()
        with self._explained():
            if not self._put_if(full_key, data, IfNoneMatch="*"):
                raise ObjectExists(f"{self.uri(key)} exists already")

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        full_key = self._full(key)
        form = '"{}"' if self._etag_is_quoted() else "{}"
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": form.format(seen)}
        with self._explained():
            if not self._put_if(full_key, data, **condition):
                raise SwapConflict(f"{self.uri(key)} was changed by another process meanwhile")

    @contextmanager
    def publish(self, key: str) -> Iterator[BinaryIO]:
        full_key = self._full(key)
        with tempfile.SpooledTemporaryFile(max_size=PART_BYTES) as spool:
            stream = cast(BinaryIO, spool)
            yield stream
            size = stream.seek(0, 2)
            stream.seek(0)
            with self._explained():
                if size <= PART_BYTES:
                    self._put(full_key, stream.read())
                else:
                    self._put_parts(full_key, stream)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        start = self._prefix + checked_prefix(prefix)
        with self._explained():
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start):
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(self._prefix)
                    # Folder markers, this module's own scratch objects, and what no key of ours can name.
                    if is_key(key):
                        yield ObjectStat(key, found["Size"], _bare(found["ETag"]))

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

    def arrow(self, key: str) -> tuple[Any, str]:
        full_key = self._full(key)
        with self._explained():
            return self._connection.arrow_filesystem(), f"{self._bucket}/{full_key}"

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
        except (BotoCoreError, ClientError) as error:
            explanation = explain(error, bucket=self._bucket, endpoint=self._endpoint())
        else:
            return
        # Without the cause: a credential process's output may be in it.
        raise StoreUnavailable(f"The store {self.root} can't be used: {explanation}") from None

    def _endpoint(self) -> str:
        try:
            return self._connection.endpoint
        except BotoCoreError:  # that is what is being explained
            return "the server"

    def _require_bucket(self) -> None:
        """Tell a missing object from a missing bucket, which the answer to HEAD does not."""
        connection = self._connection
        if self._bucket in connection.buckets_seen:
            return
        try:
            connection.client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if http_status(error) == 404:
                raise
        connection.buckets_seen.add(self._bucket)

    @retry(
        retry=retry_if_exception_type(_BodyCutShort),
        wait=wait_random_exponential(multiplier=0.05, max=5),
        stop=stop_after_attempt(MAX_ATTEMPTS),
        reraise=True,
    )
    def _get_once_more(self, full_key: str) -> tuple[bytes, str]:
        answer = self._client.get_object(Bucket=self._bucket, Key=full_key)
        try:
            return answer["Body"].read(), _bare(answer["ETag"])
        except (HTTPClientError, IncompleteReadError) as error:  # botocore retries up to the first byte of a body
            raise _BodyCutShort from error

    def _get(self, full_key: str) -> tuple[bytes, str]:
        try:
            return self._get_once_more(full_key)
        except _BodyCutShort as error:
            raise cast(BotoCoreError, error.__cause__) from None

    def _put_if(self, full_key: str, data: bytes, **condition: str) -> bool:
        """Put under a condition; whether it held, and the object is therefore ours."""
        write_id = uuid4().hex
        for attempt in itertools.count(1):
            try:
                self._put(full_key, data, Metadata={_WRITE_ID: write_id}, **condition)
            except ClientError as error:
                status = http_status(error)
                if status == 409 and attempt < MAX_ATTEMPTS:  # two writers at once, neither refused for good
                    time.sleep(0.05 * 2**attempt * random.random())  # noqa: S311 (chance, not secrets)
                    continue
                if status == 412 or (status == 404 and error_code(error) != "NoSuchBucket"):
                    # The answer to our own successful request may have been lost, and the SDK asked again.
                    return self._is_written_by(full_key, write_id)
                raise
            return True
        raise AssertionError  # for mypy, to which a count may end

    def _is_written_by(self, full_key: str, write_id: str) -> bool:
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=full_key)
        except ClientError as error:
            if http_status(error) == 404:
                return False
            raise
        return found["Metadata"].get(_WRITE_ID) == write_id

    @retry(
        retry=retry_if_exception(_was_damaged_on_the_way),
        wait=wait_random_exponential(multiplier=0.05, max=5),
        stop=stop_after_attempt(MAX_ATTEMPTS),
        reraise=True,
    )
    def _put(self, full_key: str, data: bytes, **more: Any) -> None:
        """Put an object in one request, and see that it arrived as it was sent."""
        md5, sha256 = _md5(data), hashlib.sha256(data).digest()
        if self._connection.configuration.checksum_mode == "when_supported":
            more["ChecksumSHA256"] = _base64(sha256)
        else:
            more["ContentMD5"] = _base64(md5)
        answer = self._client.put_object(Bucket=self._bucket, Key=full_key, Body=data, **more)
        if _bare(answer["ETag"]) != md5.hex() and answer.get("ChecksumSHA256") != _base64(sha256):
            self._compare(full_key, _bare(answer["ETag"]), sha256, keep="IfMatch" in more)

    def _put_parts(self, full_key: str, stream: BinaryIO) -> None:
        """Put a large object in parts, several at a time, and see that it arrived as it was sent."""
        from boto3.s3.transfer import TransferConfig

        transfer = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8)
        with ThreadPoolExecutor(1) as aside:
            etag_of_parts = aside.submit(_etag_of_parts, stream.fileno())
            self._client.upload_fileobj(stream, self._bucket, full_key, Config=transfer)
        etag = _bare(self._client.head_object(Bucket=self._bucket, Key=full_key)["ETag"])
        if etag != etag_of_parts.result():
            sha256 = hashlib.sha256()
            stream.seek(0)
            while chunk := stream.read(PART_BYTES):
                sha256.update(chunk)
            self._compare(full_key, etag, sha256.digest(), keep=False)

    def _compare(self, full_key: str, etag: str, sha256: bytes, *, keep: bool) -> None:
        """Read back what was just written, where the server gives no digest to go by (encryption with own keys, …)."""
        digest = hashlib.sha256()
        answer = self._client.get_object(Bucket=self._bucket, Key=full_key)
        for chunk in answer["Body"].iter_chunks(2**20):
            digest.update(chunk)
        if digest.digest() == sha256 or _bare(answer["ETag"]) != etag:  # the second: it was replaced since
            return
        if not keep:
            self._client.delete_object(Bucket=self._bucket, Key=full_key)
        raise StoreUnavailable(
            f"The store {self.root} can't be used: s3://{self._bucket}/{full_key} holds other bytes than were sent"
            f"{'' if keep else ', and was removed'}. Look at the server, and leave AWS_REQUEST_CHECKSUM_CALCULATION "
            "at when_required."
        )

    def _etag_is_quoted(self) -> bool:
        """Whether `If-Match` takes the ETag in quotes, as the standard says; Ceph 16 compares it without.

        Found out once in a process, together with what matters more.

        Raises:
            StoreUnavailable: the server does not heed conditions, so that two writers would overwrite each other.
        """
        with self._explained():
            known = self._connection.etag_is_quoted
            if self.root not in known:
                known[self.root] = self._try_conditions()
        return known[self.root]

    def _try_conditions(self) -> bool:
        key = f"{self._prefix}.conditional-write-check/{uuid4().hex}"
        try:
            self._is_refused(key, IfNoneMatch="*")
            heeded = self._is_refused(key, IfNoneMatch="*") and self._is_refused(key, IfMatch=f'"{_md5(b"").hex()}"')
            for form, quoted in (('"{}"', True), ("{}", False)):
                etag = _bare(self._client.head_object(Bucket=self._bucket, Key=key)["ETag"])
                if heeded and not self._is_refused(key, IfMatch=form.format(etag)):
                    return quoted
        finally:
            with suppress(BotoCoreError, ClientError):  # the scratch object is hidden, and harmless where it stays
                self._client.delete_object(Bucket=self._bucket, Key=key)
        raise StoreUnavailable(
            f"The store {self.root} can't be used: {self._endpoint()} does not heed conditional requests "
            "(If-None-Match, If-Match), so that two runs could overwrite each other's models unnoticed. Use a server "
            "that does, such as AWS, Ceph or MinIO."
        )

    def _is_refused(self, full_key: str, **condition: str) -> bool:
        try:
            self._put(full_key, b"conditional", **condition)
        except ClientError as error:
            if http_status(error) in (409, 412):
                return True
            if http_status(error) != 501:  # "not implemented": honest, and of as little use as a server that overwrites
                raise
        return False


def _bare(etag: str) -> str:
    return etag.strip('"')


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _etag_of_parts(file: int) -> str:
    """The ETag that S3 gives to an object put in parts. Leaves the file's position alone, for the upload's own use."""
    digests: list[bytes] = []
    while part := os.pread(file, PART_BYTES, len(digests) * PART_BYTES):
        digests.append(_md5(part))
    return f"{_md5(b''.join(digests)).hex()}-{len(digests)}"


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
