"""Start Ray for one run without its monitoring processes.

Changes:   methods of `ray._private.node.Node` in Ray 2.60, while a Ray for one run starts.
Why:       Ray's head always starts a log monitor, an autoscaler monitor and an API server. A run on one machine needs
           none of them, because it prints no worker output, adds no nodes and has no dashboard.
Gain:      Ray starts 2 s faster, and its idle processes take half as much CPU time (2 CPUs, 2026-11-20).
Upstream:  no public option exists. `include_dashboard=False` still starts the API server, for usage reports.
Remove:    when `ray.init` can leave these processes out.
If gone:   Ray starts with all its processes, and logs one line.
Test:      tests/integration/test_ray_of_a_run.py, tests/unit/infra/upstream/test_patches.py
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TARGETS = (
    "ray._private.node:Node.start_log_monitor",
    "ray._private.node:Node.start_monitor",
    "ray._private.node:Node.start_api_server",
    "ray._private.node:Node.get_gcs_client",
    "ray._private.ray_constants:DASHBOARD_ADDRESS",
    "ray._private.ray_constants:KV_NAMESPACE_DASHBOARD",
)
"""The private names that this patch needs."""

_ENVIRONMENT = {
    # By default, the node's agent reads all processes of the node every 5 s, and looks for event files every 2 s.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "30",
}
"""Environment of Ray's processes, unless the user has set these variables."""

_NO_SERVER = b"http://127.0.0.1:9"
"""Registered in place of the API server's address, so that the node's agent doesn't log an error every second."""

_log = logging.getLogger(__name__)


@contextmanager
def without_monitoring_processes() -> Iterator[None]:
    """Start Ray without its monitoring processes inside the block."""
    try:
        from ray._private.node import Node
        from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD  # noqa: F401

        originals = {name: getattr(Node, name) for name in _REPLACEMENTS}
    except (ImportError, AttributeError) as error:
        _log.warning("Ray starts with its monitoring processes: %s", error)
        yield
        return
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ |= added
    for name, replacement in _REPLACEMENTS.items():
        setattr(Node, name, replacement)
    try:
        yield
    finally:
        for name, method in originals.items():
            setattr(Node, name, method)
        for name in added:
            del os.environ[name]


def _start_nothing(_node: Any, *_: Any, **__: Any) -> None:
    pass


def _register_no_server(node: Any, *_: Any, **__: Any) -> None:
    from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD

    node.get_gcs_client().internal_kv_put(DASHBOARD_ADDRESS.encode(), _NO_SERVER, True, KV_NAMESPACE_DASHBOARD)


_REPLACEMENTS = {
    "start_log_monitor": _start_nothing,
    "start_monitor": _start_nothing,
    "start_api_server": _register_no_server,
}
