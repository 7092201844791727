"""Simulate a bucket with any number of objects: a server that only answers ListObjectsV2.

The server runs in a separate process and generates pages of 1,000 keys on request. The ETags are as random as MD5
hashes, so that plans are as large as real ones.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CONTEXT = multiprocessing.get_context("spawn")
KEY = "images/{folder:06d}/{number:010d}.png"
BUCKET = "s3://simulated/images"


@contextmanager
def simulated_bucket() -> Iterator[Any]:
    """Point the SDK's settings to the server during the block. Set the yielded `value` to the number of objects."""
    objects, port = CONTEXT.Value("q", 0), CONTEXT.Queue()
    server = CONTEXT.Process(target=_serve, args=(objects, port), daemon=True)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.get(timeout=60)}",
        "AWS_ACCESS_KEY_ID": "simulated",
        "AWS_SECRET_ACCESS_KEY": "simulated",
    }
    try:
        yield objects
    finally:
        server.terminate()
        server.join()


def in_a_process(function: Any, *arguments: Any) -> dict[str, Any]:
    """Call a function in a new process, and return what it puts into the queue that is its last argument."""
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=function, args=(*arguments, results))
    process.start()
    found: dict[str, Any] = results.get(timeout=3600)
    process.join()
    return found


def _serve(objects: Any, port: Any) -> None:
    """Answer listings as if a bucket held `objects` images."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            first = int(query.get("continuation-token", ["0"])[0])
            end = min(objects.value, first + int(query.get("max-keys", ["1000"])[0]))
            more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < objects.value else ""
            contents = "".join(
                f"<Contents><Key>{KEY.format(folder=number // 10_000, number=number)}</Key>"
                "<LastModified>2026-11-23T08:00:00.000Z</LastModified>"
                f"<ETag>&quot;{md5(b'%d' % number, usedforsecurity=False).hexdigest()}&quot;</ETag>"
                "<Size>600</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for number in range(first, end)
            )
            body = (
                f"<ListBucketResult><IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{contents}"
                "</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.put(server.server_port)
    server.serve_forever()
