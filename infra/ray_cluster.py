"""Ray: the cluster that is configured, or one started for the run, and how Prefect's tasks get there."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

from prefect import Task
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options

from infra.errors import RequestError
from infra.settings import Settings, load_settings

P = ParamSpec("P")
R = TypeVar("R")

_LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: nothing preempts the only machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


def check_ray_address(address: str) -> None:
    """Find out whether anything listens at a Ray address, which Ray itself takes half a minute to tell.

    Raises:
        RequestError: nothing does, or it is no address.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if address == "auto":
        return
    if parts.scheme not in ("", "ray") or not parts.hostname or not parts.port:
        raise RequestError(
            f"FMNIST_RAY_ADDRESS: {address!r} is no Ray address; expected host:6379 or ray://host:10001."
        )
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
    except OSError as error:
        raise RequestError(
            f"FMNIST_RAY_ADDRESS: nothing listens at {address} ({error.strerror or error}). Start the cluster, correct "
            "the address, or unset it to have Ray started for the run."
        ) from None


@contextmanager
def ray_connection(settings: Settings) -> Iterator[None]:
    """Connect to the configured cluster, or start Ray on this machine, for the length of the block.

    Does nothing where this process is connected already, so that the flows in a flow share its cluster.

    Raises:
        RequestError: nothing listens at the configured address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if settings.ray_address:
        check_ray_address(settings.ray_address)
        ray.init(settings.ray_address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        for name, value in _LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


class ClusterTaskRunner(RayTaskRunner[Any]):
    """prefect-ray's task runner, on the cluster that the settings name."""

    _connection: Any = None

    def __enter__(self) -> Self:
        self._connection = ray_connection(load_settings())
        self._connection.__enter__()
        return super().__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        self._connection.__exit__(*exc_info)


def on_ray(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a Prefect task inside the cluster and wait for its result; it starts Ray work and waits, so it holds no CPU."""
    with remote_options(num_cpus=0):
        future = task.submit(*args, **kwargs)
    result: R = future.result()
    return result


def cluster_cpus() -> int:
    """CPUs of the cluster this process is connected to."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def cluster_gpus() -> int:
    """GPUs of the cluster this process is connected to."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
