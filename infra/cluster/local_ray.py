"""Start Ray on this machine: for one run, or as the cluster of `fmnist serve`."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from infra.cluster.signals import own_sigterm_handler
from infra.cluster.worker_environment import KNOWN_ENVIRONMENT, worker_environment
from infra.settings import load_settings
from infra.upstream.ray_monitoring_processes import without_monitoring_processes

ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process fewer: nothing preempts the only machine
    # Each thread's own heap returns its memory whenever it is empty. Taking that memory back for the activations of
    # each step costs a virtual machine more than two threads that wait for each other (mallopt(3)).
    "MALLOC_ARENA_MAX": "2",
}
"""Environment of Ray's processes, unless the user has set these variables."""


def start_for_run() -> None:
    """Start Ray for this process alone. `ray.shutdown()` ends it."""
    import ray

    _set_environment()
    with own_sigterm_handler(), without_monitoring_processes():
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


@contextmanager
def ray_head() -> Iterator[tuple[str, str]]:
    """Run a cluster on this machine, with its dashboard, while the block runs.

    The cluster's processes get this process's settings. Runs with the same settings don't need to send them.

    Yields:
        The cluster's address, as FMNIST_RAY_ADDRESS takes it, and the dashboard's URL.
    """
    import ray

    _set_environment()
    environment = worker_environment(load_settings())
    # Ray's own actors look for the cluster in their environment. Without an address there, they take any cluster on
    # this machine, and fail if there are two. So the port is chosen before the start.
    port = _free_port()
    os.environ |= environment | {"RAY_GCS_SERVER_PORT": str(port)}
    os.environ["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"
    with own_sigterm_handler():
        context = ray.init(address="local", include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
    os.environ[KNOWN_ENVIRONMENT] = json.dumps(environment)
    try:
        yield ray.get_runtime_context().gcs_address, f"http://{context.dashboard_url}"
    finally:
        for name in (KNOWN_ENVIRONMENT, "RAY_GCS_SERVER_PORT", "RAY_ADDRESS"):
            del os.environ[name]
        ray.shutdown()


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
