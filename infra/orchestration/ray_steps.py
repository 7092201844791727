"""How Prefect's tasks get to Ray, and how a flow waits for them there."""

import socket
import time
from concurrent.futures import wait
from typing import Any, ParamSpec, Self, TypeVar

from prefect import Task
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options
from prefect_ray.task_runners import PrefectRayFuture

from infra.cluster.connection import ray_connection
from infra.cluster.placement import on_this_node
from infra.cluster.ray_ahead import await_imports
from infra.errors import JobError
from infra.settings import load_settings

P = ParamSpec("P")
R = TypeVar("R")

_HEAD_LOOK_SECONDS, _HEAD_SECONDS = 5.0, 40.0
"""How often the head is looked for, and how long it may be away, as while it restarts: Ray waits for it for 60 s."""


class ClusterLost(JobError):
    """The cluster's head is gone."""


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
    """Run a Prefect task inside the cluster, and return its result.

    It holds no CPU, as it only waits there itself, and runs on this node, so that no other's death takes it along.
    """
    import ray

    await_imports()
    with remote_options(**on_this_node()):
        future: PrefectRayFuture[R] = task.submit(*args, **kwargs)
    head = _Head()
    try:
        # In Python, and a second at a time: ray.get, while it waits, sits on the exception by which a signal cancels a
        # run, and that of a limit of time comes between two instructions.
        ended = future.wrapped_future.future()
        while not wait([ended], timeout=1).done:
            head.check()
    except ClusterLost:
        raise  # there is nobody left to ask for anything
    except BaseException:
        ray.cancel(future.wrapped_future, force=True)  # and with it ends what it had started
        raise
    result: R = future.result()
    return result


class _Head:
    """Looks whether the cluster's head is there: without it, Ray ends this process after a minute, and says little."""

    def __init__(self) -> None:
        import ray

        self._address: str = ray.get_runtime_context().gcs_address
        self._looked = self._seen = time.monotonic()

    def check(self) -> None:
        now = time.monotonic()
        if now - self._looked < _HEAD_LOOK_SECONDS:
            return
        self._looked = now
        try:
            host, port = self._address.rsplit(":", 1)
            socket.create_connection((host.strip("[]"), int(port)), timeout=_HEAD_LOOK_SECONDS).close()
        except OSError as error:
            if now - self._seen > _HEAD_SECONDS:
                raise ClusterLost(
                    f"The head of the Ray cluster at {self._address} is gone ({error.strerror or error}), and the run "
                    "with it; start a cluster."
                ) from None
        else:
            self._seen = now
