"""Restrict access to Prefect's server from web browsers.

Prefect's server asks for no password by default, and its deployments run commands. Any web page can send requests to
127.0.0.1 from the browser of its visitor. These rules allow only the server's own pages:

- A request or WebSocket handshake with a foreign `Origin` gets 403. CORS alone would only hide the answer from the
  page. It does not cover WebSockets.
- A request with a foreign `Host` gets 400. This stops DNS rebinding, where the page's own domain resolves to 127.0.0.1.

Workers and the command line send no `Origin`, so the first rule doesn't affect them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@contextmanager
def access_settings(port: int) -> Iterator[list[str]]:
    """Set Prefect's CORS origins and the API address of its pages to the server's own, unless the user set them.

    Args:
        port: the port that the server listens on.

    Yields:
        The addresses that browsers may use: the server's own, and those in the two settings.
    """
    from prefect.settings import (
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
        PREFECT_UI_API_URL,
        get_current_settings,
        temporary_settings,
    )

    own = [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
    server = get_current_settings().server
    defaults = {}
    if "cors_allowed_origins" not in server.api.model_fields_set:
        defaults[PREFECT_SERVER_CORS_ALLOWED_ORIGINS] = ",".join(own)
    if "api_url" not in server.ui.model_fields_set:
        defaults[PREFECT_UI_API_URL] = f"{own[0]}/api"
    with temporary_settings(defaults):
        server = get_current_settings().server
        yield [*own, *server.api.cors_allowed_origins.split(","), server.ui.api_url or ""]


def restrict_access(app: ASGIApp, addresses: list[str]) -> ASGIApp:
    """Refuse requests and WebSocket handshakes that carry a foreign Host or Origin.

    Args:
        app: the application to protect.
        addresses: URLs of the server. `*` allows any Origin, but no further Host. An entry without a host is ignored.
    """
    hosts = sorted(set(filter(None, map(_host, addresses))))
    if _ANY not in map(str.strip, addresses):
        app = _OriginMiddleware(app, frozenset(filter(None, map(_origin, addresses))))
    return TrustedHostMiddleware(app, allowed_hosts=hosts, www_redirect=False)


class _OriginMiddleware:
    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] in ("http", "websocket") and not self._allowed.issuperset(
            Headers(scope=scope).getlist("origin")
        ):
            app = PlainTextResponse(
                "Foreign Origin. To allow it, add it to PREFECT_SERVER_CORS_ALLOWED_ORIGINS.", status_code=403
            )
        await app(scope, receive, send)


def _host(address: str) -> str | None:
    """Extract the host in the form of a Host header, without the port."""
    host = urlsplit(address.strip()).hostname
    if not host or _ANY in host:
        return None
    return f"[{host}]" if ":" in host else host


def _origin(address: str) -> str | None:
    """Extract the origin in the form that browsers send: in lower case, without a path or a default port."""
    host, parts = _host(address), urlsplit(address.strip())
    if host is None:
        return None
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"
