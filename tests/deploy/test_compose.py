"""Test the Compose file: how Compose resolves it, what it guarantees, and its commands and health checks in use."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.image import CONTAINERS, USER_ID, Image
from tests.harness.absent import IN_CI, install, missing
from tests.harness.s3_server import free_port

_FILE = CONTAINERS / "compose.yaml"
_LOCK = Path(__file__).with_name("compose.lock")
_SECRETS = {"RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"}
_OURS = {"prefect-server", "ray-head", "ray-node", "ray-gpu-node", "worker"}

Service = dict[str, Any]


@pytest.fixture(scope="session")
def docker_compose(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Find or install Docker Compose 2 or newer. `config` needs no container engine."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            found = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if found.returncode == 0 and not found.stdout.startswith(("1.", "v1.")):
                return command
    if not IN_CI:
        missing("Docker Compose is not installed: https://docs.docker.com/compose/install")
    folder = tmp_path_factory.mktemp("compose")
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--require-hashes", "--requirement", str(_LOCK), "--target", str(folder)]
    subprocess.run([uv, "pip", "install", *options], check=True, timeout=120)
    return [str(folder / "compose" / "docker-compose")]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an env file as a user does."""
    file = tmp_path_factory.mktemp("settings") / ".env"
    file.write_text(_make_env())
    return file


@pytest.fixture(scope="session")
def services(docker_compose: list[str], settings: Path) -> dict[str, Service]:
    """Return all services as Compose resolves them. It checks its schema and replaces every variable."""
    done = _config(docker_compose, "--env-file", str(settings), "--profile", "s3", "--profile", "gpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Service] = json.loads(done.stdout)["services"]
    return found


def _config(docker_compose: list[str], *options: str) -> "subprocess.CompletedProcess[str]":
    own = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    command = [*docker_compose, "--file", str(_FILE), *options, "config", "--format", "json"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=own)


def _make_env() -> str:
    return subprocess.run(["sh", CONTAINERS / "make-env.sh"], capture_output=True, text=True, check=True).stdout


def _values(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_new_env_file_has_random_secrets_and_otherwise_the_example() -> None:
    example, one, other = (
        _values(text) for text in ((CONTAINERS / ".env.example").read_text(), _make_env(), _make_env())
    )
    assert {name for name in example if one[name] != other[name]} == _SECRETS
    assert {name for name, value in example.items() if one[name] != value} == _SECRETS
    assert all(re.fullmatch("[0-9a-f]{64}", one[name]) for name in _SECRETS)


def test_example_lists_every_variable_of_the_file_with_its_default() -> None:
    example = _values((CONTAINERS / ".env.example").read_text())
    read = re.findall(r"\$\{(\w+)(:-|:\?)([^}]*)\}", _FILE.read_text())
    assert {name for name, _, _ in read} | {"COMPOSE_PROFILES"} == set(example)
    assert {name for name, how, _ in read if how == ":?"} == _SECRETS
    for name, how, default in read:
        if how == ":-":
            assert example[name] == default, name


@pytest.mark.parametrize("secret", sorted(_SECRETS))
def test_missing_secret_is_named(docker_compose: list[str], settings: Path, tmp_path: Path, secret: str) -> None:
    lines = [line for line in settings.read_text().splitlines() if not line.startswith(f"{secret}=")]
    (tmp_path / ".env").write_text("\n".join(lines))
    done = _config(docker_compose, "--env-file", str(tmp_path / ".env"))
    assert done.returncode != 0
    assert secret in done.stderr
    assert "make-env.sh" in done.stderr


def test_no_secret_is_in_the_file(settings: Path) -> None:
    values = _values(settings.read_text())
    assert not any(values[name] in _FILE.read_text() for name in _SECRETS)
    named = re.findall(r"^\s*\w*(?:TOKEN|PASSWORD|SECRET_\w+|KEY_ID):\s+(\S+)", _FILE.read_text(), re.MULTILINE)
    assert len(named) >= len(_SECRETS)
    assert all(value.startswith("${") for value in named)


def test_profiles_add_gpus_and_the_s3_service(
    docker_compose: list[str], settings: Path, services: dict[str, Service], tmp_path: Path
) -> None:
    by_default = json.loads(_config(docker_compose, "--env-file", str(settings)).stdout)["services"]
    assert set(services) - set(by_default) == {"ray-gpu-node"}
    (tmp_path / ".env").write_text(settings.read_text().replace("COMPOSE_PROFILES=s3", "COMPOSE_PROFILES=gpu"))
    elsewhere = json.loads(_config(docker_compose, "--env-file", str(tmp_path / ".env")).stdout)["services"]
    assert set(services) - set(elsewhere) == {"s3"}
    [device] = services["ray-gpu-node"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_nothing_is_published_beyond_this_machine(services: dict[str, Service]) -> None:
    published = {(name, port["host_ip"]) for name, service in services.items() for port in service.get("ports", [])}
    assert published == {("prefect-server", "127.0.0.1"), ("ray-head", "127.0.0.1"), ("s3", "127.0.0.1")}


def test_only_the_server_reaches_the_database(services: dict[str, Service]) -> None:
    assert {name for name, service in services.items() if "database" in service["networks"]} == {
        "postgres",
        "prefect-server",
    }
    # Ray takes the address of its outgoing route. With two networks, it could be the wrong one.
    assert all(set(services[name]["networks"]) == {"jobs"} for name in _OURS - {"prefect-server"})


def test_our_containers_write_only_to_volumes_and_gain_no_privileges(services: dict[str, Service]) -> None:
    for name in _OURS:
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "user" not in service  # the image's own
        assert all(volume["target"] == "/var/lib/fmnist" for volume in service.get("volumes", []))


def test_node_services_can_be_scaled(services: dict[str, Service]) -> None:
    for name in ("ray-node", "ray-gpu-node"):
        assert not {"container_name", "ports", "volumes", "hostname"} & set(services[name])


def test_each_container_has_a_memory_limit_and_restarts(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert int(service["mem_limit"]) >= 2**30, name
        assert service["restart"] == "unless-stopped", name


def test_dependent_services_wait_until_the_others_are_healthy(services: dict[str, Service]) -> None:
    waits = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert waits["prefect-server"] == {"postgres"}
    assert waits["worker"] == {"prefect-server", "ray-head", "s3"}
    assert waits["ray-node"] == {"ray-head", "s3"}
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            assert services[other]["healthcheck"]["test"], other


def test_addresses_point_to_services(services: dict[str, Service]) -> None:
    environment = services["worker"]["environment"]
    for name, port in (("PREFECT_API_URL", 4200), ("AWS_ENDPOINT_URL", 8333), ("FMNIST_RAY_ADDRESS", 6379)):
        host, _, rest = environment[name].removeprefix("http://").partition(":")
        assert host in services, name
        assert rest.partition("/")[0] == str(port), name
    assert environment["FMNIST_STORE"] == f"s3://{services['s3']['environment']['S3_BUCKET']}"
    assert services["prefect-server"]["environment"]["PREFECT_SERVER_DATABASE_HOST"] in services


def test_server_allows_its_published_address_and_its_name_among_the_services(
    docker_compose: list[str], settings: Path, services: dict[str, Service], tmp_path: Path
) -> None:
    assert _allowed(services) == {"http://127.0.0.1:4200", "http://localhost:4200", "http://prefect-server:4200"}
    worker = services["worker"]["environment"]["PREFECT_API_URL"]
    assert worker.removesuffix("/api") in _allowed(services)
    changed = settings.read_text().replace("PREFECT_PORT=4200", "PREFECT_PORT=4300")
    changed = changed.replace("PREFECT_OTHER_ORIGINS=", "PREFECT_OTHER_ORIGINS=https://prefect.example")
    (tmp_path / ".env").write_text(changed)
    elsewhere = json.loads(_config(docker_compose, "--env-file", str(tmp_path / ".env")).stdout)["services"]
    assert _allowed(elsewhere) == {
        "http://127.0.0.1:4300",
        "http://localhost:4300",
        "http://prefect-server:4200",
        "https://prefect.example",
    }


def _allowed(services: dict[str, Service]) -> set[str]:
    origins: str = services["prefect-server"]["environment"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]
    return set(filter(None, origins.split(",")))


def test_nodes_hold_the_keys_of_the_store_and_the_token(services: dict[str, Service]) -> None:
    for name in ("ray-head", "ray-node", "ray-gpu-node", "worker"):
        own = services[name]["environment"]
        assert own["AWS_ACCESS_KEY_ID"] == services["s3"]["environment"]["AWS_ACCESS_KEY_ID"]
        assert own["AWS_SECRET_ACCESS_KEY"] == services["s3"]["environment"]["AWS_SECRET_ACCESS_KEY"]
        assert own["RAY_AUTH_TOKEN"] == services["ray-head"]["environment"]["RAY_AUTH_TOKEN"]


def test_commands_and_their_options_exist(services: dict[str, Service], image: Image) -> None:
    help_texts: dict[str, str] = {}
    for name in sorted(_OURS):
        command = services[name]["command"]
        if command[0] in ("head", "node"):
            program = ["ray", "start"]
        elif command[0] == "driver":
            program = command[1:]
        else:
            program = list(takewhile(lambda word: not word.startswith("--"), command))
        if " ".join(program) not in help_texts:
            done = image.run(*program, "--help")
            assert done.returncode == 0, (name, done.stderr)
            help_texts[" ".join(program)] = done.stdout
        for option in (word.partition("=")[0] for word in command if word.startswith("--")):
            assert option in help_texts[" ".join(program)], (name, option)


@contextmanager
def _running(process: "subprocess.Popen[Any]", stop: signal.Signals) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(stop)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _programs() -> Path:
    """Return the folder of PostgreSQL's programs, which Debian keeps out of PATH."""
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):
        return found.parent
    install("postgresql", "PostgreSQL")
    return next(Path("/usr/lib/postgresql").glob("*/bin/initdb")).parent


def _within(seconds: float, process: "subprocess.Popen[Any]", check: list[str], image: Image, log: Path) -> None:
    """Repeat a health check as the image's user until it succeeds."""
    deadline = time.monotonic() + seconds
    while image.run(*check).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def test_prefect_serves_from_postgres_and_passes_its_health_checks(
    services: dict[str, Service], image: Image, tmp_path: Path
) -> None:
    """Run both with Compose's settings and health checks, on other ports, as users other than root."""
    programs = _programs()
    database_port, port = free_port(), free_port()
    password = secrets.token_hex(16)
    data = image.root / "postgres"
    data.mkdir()
    (data / "password").write_text(password)
    # Unlike ours, PostgreSQL's programs need a user with a name.
    user: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(data, "nobody")
        shutil.chown(data / "password", "nobody")
    options = ["--username=prefect", "--auth=scram-sha-256", f"--pwfile={data}/password", f"--pgdata={data}/data"]
    subprocess.run([programs / "initdb", *options], check=True, capture_output=True, cwd=data, **user)
    log = tmp_path / "postgres.log"
    with log.open("w") as output:
        options = ["-D", f"{data}/data", "-p", str(database_port), "-k", str(data), "-h", "127.0.0.1"]
        postgres = subprocess.Popen([programs / "postgres", *options], stdout=output, stderr=output, cwd=data, **user)
    with _running(postgres, signal.SIGINT):
        check = services["postgres"]["healthcheck"]["test"][1:]
        _within(30, postgres, [str(programs / check[0]), *check[1:], f"--port={database_port}"], image, log)
        own = {
            **{name: image.inside(value) for name, value in services["prefect-server"]["environment"].items()},
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(database_port),
            "PREFECT_SERVER_DATABASE_NAME": "postgres",  # Compose's image creates one named after the user
            "PREFECT_SERVER_DATABASE_PASSWORD": password,
        }
        log = tmp_path / "prefect.log"
        command = [word.replace("4200", str(port)) for word in services["prefect-server"]["command"]]
        server = image.start(*command, log=log, **own)
        with _running(server, signal.SIGTERM):
            check = services["prefect-server"]["healthcheck"]["test"][1:]
            _within(180, server, [word.replace("4200", str(port)) for word in check], image, log)
            pages = f"http://127.0.0.1:{port}"
            assert _health(pages) == 200
            assert _health(pages, Host="prefect-server:4200") == 200
            assert _health(pages, Origin="http://localhost:4200") == 200
            assert _health(pages, Origin="https://evil.example") == 403
            assert _health(pages, Host="evil.example:4200") == 400
            tables = image.run(
                *(str(programs / "psql"), "--host=127.0.0.1", f"--port={database_port}", "--username=prefect"),
                *("--dbname=postgres", "--tuples-only", "--command=select count(*) from flow_run"),
                PGPASSWORD=password,
            )
            assert tables.stdout.strip() == "0", tables.stderr
            if os.geteuid() == 0:
                assert (image.home / "pages").stat().st_uid == USER_ID
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)
            assert time.monotonic() - began < 30


def _health(pages: str, **headers: str) -> int:
    return httpx.get(f"{pages}/api/health", headers=headers, timeout=20, trust_env=False).status_code
