"""Ray: the cluster that is configured, or one started for the run, and how Prefect's tasks get there."""

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, Self, TypeVar

from prefect import Task
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options

from infra.ray_address import check_ray_address
from infra.settings import Settings, load_settings

P = ParamSpec("P")
R = TypeVar("R")

_LOCAL_ENVIRONMENT = {
    # A worker process costs seconds of imports; keep idle ones for the next step instead of ending them after a second.
    "RAY_num_workers_soft_limit": "8",
    "RAY_idle_worker_killing_time_threshold_ms": "120000",
    "RAY_worker_maximum_startup_concurrency": "8",
    # Ray's agents wait so long for a head that is gone; here it comes back no more, for it dies with the run.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
_TRAIN_ENVIRONMENT = {
    # Ray Train gives its processes this variable. Where the whole job has it, all its processes have one environment,
    # and one that was started for a task serves as a training worker later.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}
_LOCAL_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: nothing preempts the only machine
}
_WARM_MODULES = ("ray.train.torch", "torch._dynamo", "fmnist_model.training", "prefect_ray", "tasks.training")


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
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.ray_address:
        check_ray_address(settings.ray_address)
        ray.init(settings.ray_address, runtime_env={"env_vars": _TRAIN_ENVIRONMENT}, **quiet)
    else:
        for name, value in (_LOCAL_ENVIRONMENT | _LOCAL_TRAIN_ENVIRONMENT).items():
            os.environ.setdefault(name, value)
        environment = {"env_vars": _TRAIN_ENVIRONMENT | _LOCAL_TRAIN_ENVIRONMENT}
        ray.init(address="local", include_dashboard=False, runtime_env=environment, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def warm_up(processes: int) -> None:
    """Have worker processes started and the slow modules imported while this process does other things.

    Returns at once. It changes when processes are started, and nothing else: a task or actor that finds none waiting
    has one started, as ever.
    """
    import ray

    def load(modules: tuple[str, ...]) -> None:
        for module in modules:
            importlib.import_module(module)

    remote = ray.remote(load).options(num_cpus=0)
    for _ in range(processes):
        remote.remote(_WARM_MODULES)


class ClusterTaskRunner(RayTaskRunner[Any]):  # type: ignore[misc] # prefect-ray ships no types
    """prefect-ray's task runner, on the cluster that the settings name."""

    _connection: Any = None

    def __enter__(self) -> Self:
        self._connection = ray_connection(load_settings())
        self._connection.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        self._connection.__exit__(*exc_info)


def on_ray(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a Prefect task inside the cluster, holding no CPU as it only waits there itself, and return its result."""
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
