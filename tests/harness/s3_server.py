"""Provide an S3 server for a test, and a proxy in front of it that injects faults."""

import http.client
import os
import shutil
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from infra.storage.object_store import ObjectStore, open_store
from tests.harness.absent import IN_CI

CEPH_EXPECTED = IN_CI or shutil.which("radosgw") is not None

on_ceph = pytest.mark.slow
"""Marks a test that only Ceph passes, because moto checks neither signatures nor Content-MD5."""

EACH_SERVER = [
    pytest.param("moto_server", id="moto"),
    *([pytest.param("ceph_gateway", id="ceph", marks=pytest.mark.slow)] if CEPH_EXPECTED else []),
]
"""Fixture names as parameters: the servers that support everything the project needs."""


@dataclass(frozen=True)
class S3Server:
    """A running server and its bucket."""

    environment: dict[str, str]
    """The AWS variables that point clients to the server."""
    bucket: str = "fmnist"

    @property
    def endpoint(self) -> str:
        return self.environment["AWS_ENDPOINT_URL"]

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point this process to the server, whatever AWS settings the developer has."""
        isolate_aws(monkeypatch)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def new_store(self) -> ObjectStore:
        """Open an empty store in the bucket."""
        return open_store(f"s3://{self.bucket}/{uuid4().hex}/tests")


def isolate_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's own AWS settings and credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Exchange:
    """A request and its answer. A fault changes either one in transit."""

    method: str
    path: str
    body: bytes
    answer_body: bytes = b""
    lose_answer: bool = False
    """Close the connection instead of answering, once the server has handled the request."""
    cut_answer_at: int | None = None
    """Bytes of the answer's body to send before the connection is closed."""
    answer_etag: str | None = None
    """ETag to return instead of the server's, as a server does whose ETags are no digests."""
    drop_metadata: bool = False
    """Return no metadata of the object, as a server does that stores none."""
    answer_instead: int | None = None
    """Status of an S3 error to return without asking the server."""
    cut_request_at: int | None = None
    """Bytes of the request's body to forward before both connections are closed."""
    hang_seconds: float = 0.0
    """Seconds to wait before the request is forwarded or answered."""
    fault: str = ""
    """Kind of fault that a schedule drew for the request."""


Fault = Callable[[Exchange], None]


@contextmanager
def faulty_proxy(
    server: S3Server, before: Fault | None = None, after: Fault | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[S3Server]:
    """Put a proxy in front of a server.

    Args:
        server: the server to forward to.
        before: changes each request before it is forwarded.
        after: changes each answer before it is returned.
        tls: certificate and key, to serve https.
    """
    target = urlsplit(server.endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            exchange = Exchange(self.command, self.path, body)
            if before:
                before(exchange)
            if exchange.hang_seconds:
                time.sleep(exchange.hang_seconds)
            if exchange.answer_instead:
                self._refuse(exchange.answer_instead)
                return
            upstream = http.client.HTTPConnection(target, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, exchange.body[: exchange.cut_request_at], headers)
            if exchange.cut_request_at is not None:
                upstream.close()
                self._reset()
                return
            answer = upstream.getresponse()
            exchange.answer_body = answer.read()
            upstream.close()
            if after:
                after(exchange)
            if exchange.lose_answer:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server", "content-length"):
                    self._send_header(name, value, exchange)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(exchange.answer_body)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(exchange.answer_body[: exchange.cut_answer_at])
            self.close_connection = exchange.cut_answer_at is not None

        def _send_header(self, name: str, value: str, exchange: Exchange) -> None:
            if name.lower() == "etag" and exchange.answer_etag:
                value = exchange.answer_etag
            if not (exchange.drop_metadata and name.lower().startswith("x-amz-meta-")):
                self.send_header(name, value)

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def _refuse(self, status: int) -> None:
            code = {500: "InternalError", 503: "SlowDown"}.get(status, "AccessDenied")
            body = f"<Error><Code>{code}</Code><Message>{code} by the proxy.</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def __getattr__(self, name: str) -> Callable[[], None]:
            if name.startswith("do_"):
                return self._forward
            raise AttributeError(name)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (named by the base class)
            pass

    proxy = _Proxy(("127.0.0.1", 0), Handler)
    if tls:
        # The handshake happens in the thread of its connection, at its first read.
        proxy.socket = tls.wrap_socket(proxy.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{proxy.server_port}"
        yield S3Server(server.environment | {"AWS_ENDPOINT_URL": endpoint}, server.bucket)
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that stopped waiting
            super().handle_error(request, client_address)
