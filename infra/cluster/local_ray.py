"""Start Ray on this machine: for one run, or as the cluster of `fmnist serve`."""

import json
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.cluster.signals import own_sigterm_handler
from infra.cluster.temporary_folder import ray_folder
from infra.cluster.worker_environment import KNOWN_ENVIRONMENT, worker_environment
from infra.environment import variables
from infra.errors import JobError, last_line
from infra.packages import search_paths
from infra.settings import load_settings
from infra.upstream.ray_driver_paths import job_config_with_paths
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
    with own_sigterm_handler(), without_monitoring_processes():
        _start(include_dashboard=False)


@contextmanager
def ray_head() -> Iterator[tuple[str, str]]:
    """Run a cluster on this machine, with its dashboard, while the block runs.

    The cluster's processes get this process's settings. Runs with the same settings don't need to send them.

    Yields:
        The cluster's address, as FMNIST_RAY_ADDRESS takes it, and the dashboard's URL.
    """
    import ray

    environment = worker_environment(load_settings())
    # Ray's own actors look for the cluster in their environment. Without an address there, they take any cluster on
    # this machine, and fail if there are two. So the port is chosen before the start.
    port = _free_port()
    os.environ |= environment | {"RAY_GCS_SERVER_PORT": str(port)}
    os.environ["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"
    with own_sigterm_handler():
        context = _start(include_dashboard=True)
    os.environ[KNOWN_ENVIRONMENT] = json.dumps(environment)
    try:
        yield ray.get_runtime_context().gcs_address, f"http://{context.dashboard_url}"
    finally:
        for name in (KNOWN_ENVIRONMENT, "RAY_GCS_SERVER_PORT", "RAY_ADDRESS"):
            del os.environ[name]
        ray.shutdown()


def _start(*, include_dashboard: bool) -> Any:
    import ray

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_AUTH_MODE") and not _can_save_token():
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = ray_folder(dashboard=include_dashboard)
    try:
        # The dashboard starts processes that would search the current folder for modules first.
        with variables({"PYTHONSAFEPATH": "1"} | folder.variables()):
            return ray.init(
                address="local",
                job_config=job_config_with_paths(search_paths()),
                include_dashboard=include_dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **folder.options(),
            )
    except Exception as error:  # Ray raises errors of all kinds, some with the log of its processes as their text
        raise JobError(f"Ray did not start: {type(error).__name__}: {last_line(error)}.") from error


def _can_save_token() -> bool:
    """Return whether Ray finds or can save the token of this machine's clusters in the home folder."""
    folder = Path("~/.ray").expanduser()
    return (folder / "auth_token").exists() or os.access(folder if folder.exists() else folder.parent, os.W_OK)


def _free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
