"""Connect to Ray: to the configured cluster, or to one that is started for the run."""

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from infra.cluster.address import check_ray_address
from infra.cluster.local_ray import start_for_run
from infra.cluster.signals import own_sigterm_handler
from infra.cluster.worker_environment import KNOWN_ENVIRONMENT, worker_environment
from infra.errors import RequestError
from infra.packages import PACKAGES, ROOT, search_paths
from infra.settings import Settings, load_settings
from infra.upstream.ray_driver_paths import job_config_with_paths

P = ParamSpec("P")
R = TypeVar("R")


def connected_to_ray(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that needs Ray. Functions that it calls share its connection."""

    @functools.wraps(function)
    def with_connection(*args: P.args, **kwargs: P.kwargs) -> R:
        with ray_connection(load_settings()):
            return function(*args, **kwargs)

    return with_connection


@contextmanager
def ray_connection(settings: Settings) -> Iterator[None]:
    """Connect to the configured cluster, or start Ray on this machine, while the block runs.

    If this process is already connected, the block shares that connection.

    Raises:
        RequestError: nothing listens at the configured address, or this process may not use the cluster.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if settings.ray_address:
        _join(settings, settings.ray_address)
    else:
        start_for_run()
    try:
        yield
    finally:
        ray.shutdown()


def _join(settings: Settings, address: str) -> None:
    import ray

    check_ray_address(address)
    environment = worker_environment(settings)
    runtime_env = {
        "env_vars": environment | _address_variable(address),
        "py_modules": _own_packages(),
    }
    # Worker processes start faster without a runtime environment of their own.
    is_known = json.loads(os.environ.get(KNOWN_ENVIRONMENT, "null")) == environment
    # Ray's client protocol adds no folder of the driver's.
    paths = {} if "://" in address else {"job_config": job_config_with_paths(search_paths())}
    try:
        with own_sigterm_handler():
            ray.init(
                address,
                runtime_env=None if is_known else runtime_env,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **paths,
            )
    except ConnectionError as error:
        raise RequestError(
            f"FMNIST_RAY_ADDRESS: the server at {address} refuses the connection ({str(error).splitlines()[0]}). Check "
            f"that it is a Ray {ray.__version__} cluster, and that its token is in RAY_AUTH_TOKEN or in the file that "
            "RAY_AUTH_TOKEN_PATH names."
        ) from None


def _address_variable(address: str) -> dict[str, str]:
    """Tell Ray's own actors which cluster they belong to. On a machine with several clusters, they would find none."""
    return {} if "://" in address or address == "auto" else {"RAY_ADDRESS": address}


def _own_packages() -> list[str]:
    """Return the folders of this project's packages. A node may have other versions of them, or none."""
    return [str(ROOT / name) for name in PACKAGES]
