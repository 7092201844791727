"""Ray: the cluster that is configured, or one started for the run. Nothing here imports Prefect."""

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.cluster.address import check_ray_address
from infra.errors import RequestError
from infra.settings import Settings, load_settings
from infra.upstream.ray_monitoring_processes import without_onlookers

ON_THIS_MACHINE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: nothing preempts the only machine
    # Each thread's own heap gives memory back whenever it is empty. Taking it anew, for each step's activations, costs
    # a virtual machine more than two threads that wait for each other (mallopt(3)).
    "MALLOC_ARENA_MAX": "2",
}
"""For the processes of a Ray that this process starts, where the user has not set it."""

_KNOWN = "FMNIST_RAY_ENVIRONMENT"
"""Names, as JSON, what the processes of the cluster were started with; `ray_head` sets it."""

_joined: list[AbstractContextManager[None]] = []
"""The connection that was made ahead, until it is taken over."""


@contextmanager
def ray_connection(settings: Settings) -> Iterator[None]:
    """Connect to the configured cluster, or start Ray on this machine, for the length of the block.

    Does nothing where this process is connected already, so that the flows in a flow share its cluster.

    Raises:
        RequestError: nothing listens at the configured address, or it is a cluster that this process may not use.
    """
    import ray

    if ray.is_initialized():
        with ExitStack() as joined:
            if _joined:
                joined.push(_joined.pop())
            yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _own_signals():
        if settings.ray_address:
            check_ray_address(settings.ray_address)
            environment = _worker_environment(settings)
            # A worker process with a runtime environment of its own is started later than one without.
            known = json.loads(os.environ.get(_KNOWN, "null")) == environment
            runtime_env = {
                "env_vars": environment | _address_variable(settings.ray_address),
                "py_modules": _own_packages(),
            }
            try:
                ray.init(settings.ray_address, runtime_env=None if known else runtime_env, **quiet)
            except ConnectionError as error:
                raise RequestError(
                    f"FMNIST_RAY_ADDRESS: what listens at {settings.ray_address} lets nobody connect "
                    f"({str(error).splitlines()[0]}). Is it a Ray cluster of this version ({ray.__version__})? Its "
                    "token, in RAY_AUTH_TOKEN or in the file that RAY_AUTH_TOKEN_PATH names, must be this one's, too."
                ) from None
        else:
            for name, value in ON_THIS_MACHINE.items():
                os.environ.setdefault(name, value)
            with without_onlookers():
                ray.init(address="local", include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def join_ahead(settings: Settings) -> None:
    """Connect to the configured cluster now; the next `ray_connection` takes the connection over, and ends it.

    Raises:
        RequestError: as of `ray_connection`.
    """
    connection = ray_connection(settings)
    connection.__enter__()
    _joined.append(connection)


@contextmanager
def ray_head() -> Iterator[tuple[str, str]]:
    """Run a cluster of this machine alone, with its dashboard, for the length of the block.

    Its processes have this process's settings; runs with the same ones need not send them.

    Yields:
        Its address, for FMNIST_RAY_ADDRESS, and that of the dashboard.
    """
    import ray

    for name, value in ON_THIS_MACHINE.items():
        os.environ.setdefault(name, value)
    environment = _worker_environment(load_settings())
    # The address is fixed before the start, for Ray's own actors look it up in their environment; where it is not, they
    # take any cluster of this machine, and none where there are two.
    port = _free_port()
    os.environ |= environment | {"RAY_GCS_SERVER_PORT": str(port)}
    os.environ["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"
    with _own_signals():
        context = ray.init(address="local", include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
    os.environ[_KNOWN] = json.dumps(environment)
    try:
        yield ray.get_runtime_context().gcs_address, f"http://{context.dashboard_url}"
    finally:
        for name in (_KNOWN, "RAY_GCS_SERVER_PORT", "RAY_ADDRESS"):
            del os.environ[name]
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces by its own: Prefect cancels a run by that signal.

    With Ray's handler, the process would exit as if it had crashed, before it could say that it was cancelled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _worker_environment(settings: Settings) -> dict[str, str]:
    """What processes on other machines need to know; no secret is among it, for a cluster shows it to its users."""
    from infra.storage.object_store.s3_configuration import worker_environment

    own = {
        "FMNIST_STORE": settings.store,
        "FMNIST_RETRIES": str(settings.retries),
        "FMNIST_RAY_MAX_CPUS": str(settings.ray_max_cpus),
        "FMNIST_RAY_MAX_GPUS": str(settings.ray_max_gpus),
    }
    return worker_environment() | own


def _address_variable(address: str) -> dict[str, str]:
    """Where Ray's own actors find the cluster that they are in; where there are several, they would find none."""
    return {} if "://" in address or address == "auto" else {"RAY_ADDRESS": address}


def _own_packages() -> list[str]:
    """Folders of this project's packages: a node may have none of them, or others."""
    root = Path(__file__).parents[2]
    return [str(root / name) for name in ("flows", "tasks", "fmnist_model", "infra")]


def _free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class ClusterSize:
    """What there is to work with."""

    cpus: int
    gpus: int


def cluster_size() -> ClusterSize:
    """What the cluster this process is connected to has by now."""
    import ray

    resources = ray.cluster_resources()
    return ClusterSize(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def cluster_limit() -> ClusterSize:
    """What the cluster has, or can grow to."""
    settings, size = load_settings(), cluster_size()
    return ClusterSize(max(size.cpus, settings.ray_max_cpus), max(size.gpus, settings.ray_max_gpus))
