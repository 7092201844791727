"""Find out whether the connected cluster's workers can run on another machine, where local files are missing."""

import socket
from collections.abc import Iterable, Mapping
from typing import Any

from infra.cluster.size import cluster_limit, cluster_size
from infra.settings import load_settings


def works_elsewhere() -> bool:
    """Return whether work of this process can run on another machine, now or when the cluster grows.

    Each node of the cluster counts as a machine. False if this process isn't connected to Ray.
    """
    import ray

    if not ray.is_initialized():
        return False
    can_grow = load_settings().ray_address is not None and cluster_limit() != cluster_size()
    return is_elsewhere(ray.nodes(), host=socket.gethostname(), can_grow=can_grow)


def is_elsewhere(nodes: Iterable[Mapping[str, Any]], *, host: str, can_grow: bool) -> bool:
    """Return whether a cluster has, or can get, a node that isn't this machine.

    Args:
        nodes: nodes as `ray.nodes` describes them.
        host: name of this machine.
        can_grow: whether nodes can join while the work runs.
    """
    hosts = [node["NodeManagerHostname"] for node in nodes if node["Alive"]]
    return can_grow or len(hosts) > 1 or any(name != host for name in hosts)
