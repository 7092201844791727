"""What a run has its cluster import while its own process still imports Prefect and the flow.

For the first step, and not for actors: Ray gives an actor no process that a task was in.
"""

import importlib
import time
from collections.abc import Sequence
from concurrent.futures import wait
from typing import Any

from infra.cluster.placement import on_this_node
from infra.importing import keep_pandas_out, uncollected

_PATIENCE_SECONDS = 20.0
"""With a process that imports: on a slow disk, a new one may be no later."""

_importing: list[Any] = []
"""What Ray answers when the process is ready."""


def import_ahead(modules: Sequence[str]) -> None:
    """Have a process of the cluster import what the first step there needs; returns at once."""
    import ray

    _importing.append(ray.remote(max_retries=0, **on_this_node())(_import).remote(modules))


def await_imports() -> None:
    """Wait until the process is ready, if there is one: of those that are free, Ray takes the one that worked last."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _importing and time.monotonic() < deadline:
        if wait([_importing[0].future()], timeout=1).done:
            break
    _importing.clear()


def _import(modules: Sequence[str]) -> None:
    with uncollected():
        for module in modules:
            importlib.import_module(module)
    keep_pandas_out()
