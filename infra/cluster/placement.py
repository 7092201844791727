"""On which node of the cluster something runs, where that matters."""

from typing import Any


def on_this_node() -> dict[str, Any]:
    """Options for a task or actor that lives and dies with this process's node, and holds no CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
