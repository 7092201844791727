"""Run moto's S3 server on a free port of 127.0.0.1 until standard input ends.

    python -m tests.harness.moto_server < pipe

Prints the port once requests are accepted. A parent that dies closes the pipe, so the server never outlives it.

moto tests a condition and writes the object in two steps, without a lock: two conditional writes could both succeed.
This server lets one request at a time into moto.
"""

import io
import logging
import sys
import threading
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.exceptions import ClientDisconnected
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app
from werkzeug.wsgi import get_input_stream


class OneAtATime:
    """Passes requests to a WSGI application one at a time.

    A body is read before its request waits for its turn, so a slow client delays nobody. A body that is cut short
    never reaches the application.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application
        self._turn = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            body = get_input_stream(environ).read()
        except ClientDisconnected as cut_short:
            return cut_short(environ, start_response)
        whole = environ | {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        with self._turn:
            chunks, status, headers = run_wsgi_app(self._application, whole, buffered=True)
        start_response(status, headers.to_wsgi_list())
        return chunks


def main() -> None:
    """Serve until standard input ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    application = OneAtATime(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
