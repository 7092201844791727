"""An S3 server of a few lines that answers as AWS documents, for answers that neither moto nor Ceph gives.

The bodies follow the examples in
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#RESTErrorResponses and
https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html#API_GetObject_Errors.
"""

import hashlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from tests.harness.s3_server import isolate_aws


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    bucket: str
    key: str
    """Empty for a request to the bucket."""
    query: dict[str, str]
    headers: Message

    @property
    def is_listing(self) -> bool:
        return "list-type" in self.query

    @property
    def region(self) -> str:
        """Region in the signature, or an empty string without a signature."""
        found = re.search(r"Credential=[^/]+/\d+/([^/]+)/s3/", self.headers.get("Authorization", ""))
        return found[1] if found else ""

    @property
    def access_key(self) -> str:
        """Access key in the signature, or an empty string without a signature."""
        found = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        return found[1] if found else ""


@dataclass(frozen=True)
class Answer:
    """What to return to a request."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    """Bytes of the body to send before the connection is closed."""


Rule = Callable[[Request], Answer | None]


def refusal(status: int, code: str, message: str = "", *, headers: dict[str, str] | None = None, **more: str) -> Answer:
    """Return an error in the form of the REST API. HEAD returns its status and headers alone.

    Args:
        status: HTTP status.
        code: value of `<Code>`.
        message: value of `<Message>`.
        headers: headers to add.
        more: further elements of the body.
    """
    elements = {"Code": code, "Message": message, **more, "RequestId": "4442587FB7D0A2F9"}
    inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in elements.items())
    return Answer(status, f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inside}</Error>'.encode(), headers or {})


class S3Stub:
    """Buckets in memory. A rule that returns an answer comes before them."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.objects: dict[tuple[str, str], bytes] = {}
        """Contents by bucket and key. A bucket exists if it has objects."""
        self.rules: list[Rule] = []
        self.requests: list[Request] = []

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point this process to the stub."""
        isolate_aws(monkeypatch)
        for name, value in {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "STUBACCESSKEY",
            "AWS_SECRET_ACCESS_KEY": "stub-secret",
            "AWS_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
        }.items():
            monkeypatch.setenv(name, value)

    def refuse(self, key: str, answer: Answer, *, head: Answer | None = None) -> None:
        """Give an answer to each GET of a key, and to each HEAD if it is refused too."""
        answers = {"GET": answer, "HEAD": head}
        self.rules.append(lambda request: answers.get(request.method) if request.key == key else None)

    def answer(self, request: Request) -> Answer:
        """Return the answer of the first rule that has one, or else the object or the listing."""
        self.requests.append(request)
        for rule in self.rules:
            if answer := rule(request):
                return answer
        if request.bucket not in {bucket for bucket, _ in self.objects}:
            return refusal(404, "NoSuchBucket", "The specified bucket does not exist", BucketName=request.bucket)
        if request.is_listing:
            return self._listing(request)
        return self._object(request)

    def _object(self, request: Request) -> Answer:
        data = self.objects.get((request.bucket, request.key))
        if data is None:
            return refusal(404, "NoSuchKey", "The specified key does not exist.", Key=request.key)
        headers = {"ETag": f'"{etag(data)}"', "Last-Modified": "Sat, 28 Nov 2026 20:00:00 GMT"}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if span is None:
            return Answer(200, data, headers)
        start, end = int(span[1]), min(int(span[2]), len(data) - 1)
        if start >= len(data):
            return refusal(416, "InvalidRange", "The requested range is not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return Answer(206, data[start : end + 1], headers)

    def _listing(self, request: Request) -> Answer:
        contents = "".join(
            f"<Contents><Key>{quote(key)}</Key><LastModified>2026-11-28T20:00:00.000Z</LastModified>"
            f"<ETag>&quot;{etag(data)}&quot;</ETag><Size>{len(data)}</Size></Contents>"
            for (bucket, key), data in sorted(self.objects.items())
            if bucket == request.bucket and key.startswith(request.query.get("prefix", ""))
        )
        return Answer(
            200,
            "<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>"
            f"{contents}</ListBucketResult>".encode(),
        )


def etag(data: bytes) -> str:
    """Return the ETag that S3 gives an object that was uploaded in one part."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@contextmanager
def s3_stub() -> Iterator[S3Stub]:
    """Run a stub on a free port of 127.0.0.1."""
    stub = S3Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            parts = urlsplit(self.path)
            bucket, _, key = unquote(parts.path.removeprefix("/")).partition("/")
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            answer = stub.answer(Request(self.command, bucket, key, query, self.headers))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: answer.cut_at])
            self.close_connection = answer.cut_at is not None

        do_GET = do_HEAD = _reply  # noqa: N815 (named by the base class)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (named by the base class)
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that stopped reading
            super().handle_error(request, client_address)
