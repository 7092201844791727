"""A Ray for one run on this machine, without the processes that watch it (Ray 2.60).

Ray's head starts three of them, whatever it is asked for: one that sends what workers print to the driver, one that
adds nodes, and a server that, without a dashboard, reports usage. Nobody looks, no node can be added, and nothing is
reported. Without them Ray is up two seconds sooner, and takes half as much of the CPUs while others work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {
    # The node's agent looks at all processes of the node every 5 s, and for files with events every 2 s.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "30",
}
"""For Ray's processes, where the user has not set it."""


@contextmanager
def without_onlookers() -> Iterator[None]:
    """Have a Ray that this process starts in the block start without them."""
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in _INSTEAD}
    for name, instead in _INSTEAD.items():
        setattr(Node, name, instead)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _start_nothing(_node: Any) -> None:
    pass


def _name_no_server(node: Any, **_: Any) -> None:
    """Name a server that does not exist, or the node's agent would look for its name, and log an error, each second.

    It would send events there, and is told none.
    """
    from ray._private import ray_constants

    node.get_gcs_client().internal_kv_put(
        ray_constants.DASHBOARD_ADDRESS.encode(), b"http://127.0.0.1:9", True, ray_constants.KV_NAMESPACE_DASHBOARD
    )


_INSTEAD = {
    "start_log_monitor": _start_nothing,
    "start_monitor": _start_nothing,
    "start_api_server": _name_no_server,
}
