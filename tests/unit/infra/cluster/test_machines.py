"""A cluster whose workers can run on another machine differs from one on this machine."""

from typing import Any

import pytest

from infra.cluster.machines import is_elsewhere, works_elsewhere


def node(host: str, *, alive: bool = True) -> dict[str, Any]:
    """Describe a node as `ray.nodes` does."""
    return {"NodeManagerHostname": host, "Alive": alive}


@pytest.mark.parametrize(
    ("nodes", "elsewhere"),
    [
        ([node("here")], False),
        ([node("there")], True),
        ([node("here"), node("there")], True),
        ([node("here"), node("here")], True),
        ([node("here"), node("there", alive=False)], False),
        ([node("here", alive=False), node("there")], True),
    ],
)
def test_every_other_node_that_is_alive_is_elsewhere(nodes: list[dict[str, Any]], elsewhere: bool):
    assert is_elsewhere(nodes, host="here", can_grow=False) is elsewhere


def test_cluster_that_grows_will_be_elsewhere():
    assert is_elsewhere([node("here")], host="here", can_grow=True)


def test_work_without_ray_is_here():
    assert not works_elsewhere()
