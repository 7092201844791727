"""Choose the node that a task or actor runs on."""

from typing import Any


def on_this_node() -> dict[str, Any]:
    """Return options for a task or actor that runs on this process's node, ends with it, and reserves no CPU."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(this_node(), soft=False)}


def this_node() -> str:
    """Return the id of this process's node. It is empty outside of Ray."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def living_nodes() -> set[str]:
    """Return the ids of the nodes that are alive."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
