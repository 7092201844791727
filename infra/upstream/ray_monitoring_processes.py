"""A Ray for one run on this machine, without the processes that watch it (Ray 2.60).

Ray's head starts three of them, whatever it is asked for: one that sends what workers print to the driver, one that
adds nodes, and a server that, without a dashboard, reports usage. Nobody looks, no node can be added, and nothing is
reported. Without them Ray is up two seconds sooner, and takes half as much of the CPUs while others work.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENVIRONMENT = {
    # The node's agent looks at all processes of the node every 5 s, and for files with events every 2 s.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "30",
}
"""For Ray's processes, where the user has not set it."""

_NO_SERVER = b"http://127.0.0.1:9"
"""In place of the API server's address. The node's agent would send events there, and is told none."""


@contextmanager
def without_onlookers() -> Iterator[None]:
    """Have a Ray that this process starts in the block start without them."""
    from ray._private.node import Node

    methods = {name: getattr(Node, name) for name in _INSTEAD}
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ |= added
    for name, instead in _INSTEAD.items():
        setattr(Node, name, instead)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)
        for name in added:
            del os.environ[name]


def is_alone() -> bool:
    """Whether the Ray that this process is connected to was started so, and therefore ends with its run."""
    from ray._private import ray_constants
    from ray.experimental.internal_kv import _internal_kv_get

    found = _internal_kv_get(ray_constants.DASHBOARD_ADDRESS, namespace=ray_constants.KV_NAMESPACE_DASHBOARD)
    return bool(found == _NO_SERVER)


def _start_nothing(_node: Any) -> None:
    pass


def _name_no_server(node: Any, **_: Any) -> None:
    """Name a server that does not exist, or the node's agent would look for its name, and log an error, each second."""
    from ray._private import ray_constants

    node.get_gcs_client().internal_kv_put(
        ray_constants.DASHBOARD_ADDRESS.encode(), _NO_SERVER, True, ray_constants.KV_NAMESPACE_DASHBOARD
    )


_INSTEAD = {
    "start_log_monitor": _start_nothing,
    "start_monitor": _start_nothing,
    "start_api_server": _name_no_server,
}
