"""Choose the node that a task or actor runs on."""

from typing import Any


def on_this_node() -> dict[str, Any]:
    """Return options for a task or actor that runs on this process's node, ends with it, and reserves no CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
