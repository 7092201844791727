"""Let only the server's own pages call Prefect's server."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from prefect.settings import PREFECT_SERVER_CORS_ALLOWED_ORIGINS, PREFECT_UI_API_URL, temporary_settings
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from infra.orchestration.access import access_settings, restrict_access
from infra.orchestration.server import prefect_api, prefect_server
from tests.harness.s3_server import free_port

_FOREIGN = [
    "https://evil.example",
    "http://127.0.0.1:9",
    "http://localhost",
    "https://localhost:{port}",
    "http://localhost.evil.example:{port}",
    "null",
    "",
]


@pytest.fixture(scope="module", params=[pytest.param("run", marks=pytest.mark.slow), "serve"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a real server: an embedded one, and the one of `fmnist serve`."""
    folder = tmp_path_factory.mktemp("prefect")
    if request.param == "run":
        with prefect_api(folder) as wait_for_prefect:
            yield wait_for_prefect().removesuffix("/api")
    else:
        with prefect_server(folder, free_port()) as server:
            yield server.wait_until_healthy().removesuffix("/api")


def port_of(address: str) -> int:
    port = httpx.URL(address).port
    assert port is not None
    return port


def ask(method: str, url: str, body: str | None = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.request(method, url, content=body, headers=named, timeout=20, trust_env=False)


def create_flow(address: str, name: str, **headers: str) -> httpx.Response:
    return ask("POST", f"{address}/api/flows/", json.dumps({"name": name}), **headers)


def handshake(address: str, **headers: str) -> int:
    """Open a WebSocket and return the status of the handshake."""
    try:
        with connect(
            f"{address.replace('http', 'ws', 1)}/api/events/in",
            additional_headers=headers,
            proxy=None,
            open_timeout=20,
        ) as connection:
            assert connection.response is not None
            return connection.response.status_code
    except InvalidStatus as refused:
        return refused.response.status_code


def test_own_pages_and_clients_without_origin_are_allowed(address: str) -> None:
    port = port_of(address)
    for origin in ({}, {"Origin": f"http://127.0.0.1:{port}"}, {"Origin": f"http://localhost:{port}"}):
        for host in ("127.0.0.1", "localhost"):
            headers = {**origin, "Host": f"{host}:{port}"}
            assert create_flow(address, "own", Content_Type="application/json", **headers).is_success, headers
    assert handshake(address) == 101
    assert handshake(address, Origin=address) == 101
    assert handshake(address, Origin=f"http://localhost:{port}") == 101


@pytest.mark.parametrize("origin", _FOREIGN)
def test_foreign_origin_is_refused(address: str, origin: str) -> None:
    origin = origin.format(port=port_of(address))
    for kind in ("application/json", "text/plain"):
        assert create_flow(address, "foreign", Content_Type=kind, Origin=origin).status_code == 403
    assert ask("GET", f"{address}/api/health", Origin=origin).status_code == 403
    assert handshake(address, Origin=origin) == 403
    assert ask("GET", f"{address}/api/flows/name/foreign").status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example"])
def test_foreign_host_is_refused(address: str, host: str) -> None:
    host = f"{host}:{port_of(address)}"
    assert ask("GET", f"{address}/api/health", Host=host).status_code == 400
    # After DNS rebinding, the page's own origin is the foreign host.
    assert create_flow(address, "rebound", Host=host, Origin=f"http://{host}").status_code == 400
    assert ask("GET", f"{address}/api/flows/name/rebound").status_code == 404


def test_websocket_to_a_foreign_host_is_refused(address: str) -> None:
    port = port_of(address)
    with (
        socket.create_connection(("127.0.0.1", port)) as rebound,
        pytest.raises(InvalidStatus) as refused,
        connect(f"ws://evil.example:{port}/api/events/in", sock=rebound),
    ):
        pass
    assert refused.value.response.status_code == 400


def preflight(address: str, origin: str) -> httpx.Response:
    headers = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type,x-prefect-ui"}
    return ask("OPTIONS", f"{address}/api/flows/", Origin=origin, **headers)


def test_preflight_allows_own_origins_only(address: str) -> None:
    for own in (address, f"http://localhost:{port_of(address)}"):
        answer = preflight(address, own)
        assert answer.is_success
        assert answer.headers["Access-Control-Allow-Origin"] == own
    foreign = preflight(address, "https://evil.example")
    assert foreign.status_code == 403
    assert "Access-Control-Allow-Origin" not in foreign.headers


@pytest.mark.parametrize("address", ["serve"], indirect=True)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_pages_reach_the_api_under_both_names_of_this_machine(address: str, host: str) -> None:
    pages = f"http://{host}:{port_of(address)}"
    index = ask("GET", pages)
    assert index.is_success
    assert "text/html" in index.headers["Content-Type"]
    api = ask("GET", f"{pages}/ui-settings", Origin=pages).json()["api_url"]
    assert api == f"{address}/api"
    answer = ask("GET", f"{api}/health", Origin=pages)
    assert answer.is_success
    assert answer.headers["Access-Control-Allow-Origin"] == pages


Client = Callable[..., int]


@pytest.fixture
def named(request: pytest.FixtureRequest) -> Iterator[Client]:
    """Yield a client of an application whose user allowed more addresses. The client returns the status."""
    settings = request.param
    answer = Route("/", lambda _: PlainTextResponse("ok"))
    with temporary_settings(settings), access_settings(4200) as addresses:
        transport = httpx.ASGITransport(restrict_access(Starlette(routes=[answer]), addresses))

        async def get(host: str, origin: str | None) -> int:
            headers = {"Host": host} | ({"Origin": origin} if origin else {})
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return (await client.get("/", headers=headers)).status_code

        yield lambda host, origin=None: asyncio.run(get(host, origin))


@pytest.mark.parametrize(
    "named",
    [
        {PREFECT_SERVER_CORS_ALLOWED_ORIGINS: "https://other.example:8443, https://Prefect.example:443"},
        {PREFECT_UI_API_URL: "https://prefect.example/api"},
    ],
    indirect=True,
)
def test_addresses_in_the_settings_are_allowed(named: Client) -> None:
    assert named("prefect.example", "https://prefect.example") == 200
    assert named("localhost:4200", "http://localhost:4200") == 200
    assert named("prefect.example", "http://prefect.example") == 403
    assert named("evil.example") == 400


@pytest.mark.parametrize("named", [{PREFECT_SERVER_CORS_ALLOWED_ORIGINS: "*"}], indirect=True)
def test_wildcard_origin_allows_no_other_host(named: Client) -> None:
    assert named("127.0.0.1:4200", "https://other.example") == 200
    assert named("other.example", "https://other.example") == 400


@pytest.mark.parametrize(
    "named",
    [{PREFECT_SERVER_CORS_ALLOWED_ORIGINS: "http://*,nonsense,,"}, {PREFECT_UI_API_URL: "/api"}],
    indirect=True,
)
def test_entries_without_a_host_allow_nothing(named: Client) -> None:
    assert named("127.0.0.1:4200", "http://127.0.0.1:4200") == 200
    assert named("nonsense") == 400
    assert named("127.0.0.1:4200", "nonsense") == 403


def test_settings_of_the_user_are_kept() -> None:
    from prefect.settings import get_current_settings

    user = {PREFECT_SERVER_CORS_ALLOWED_ORIGINS: "https://a.example", PREFECT_UI_API_URL: "https://b.example/api"}
    with temporary_settings(user), access_settings(4200):
        server = get_current_settings().server
        assert server.api.cors_allowed_origins == "https://a.example"
        assert server.ui.api_url == "https://b.example/api"
