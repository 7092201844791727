"""Count the CPUs and GPUs that a cluster has, and those that it can grow to."""

from dataclasses import dataclass

from infra.settings import load_settings


@dataclass(frozen=True)
class ClusterSize:
    """CPUs and GPUs of a cluster."""

    cpus: int
    gpus: int


def cluster_size() -> ClusterSize:
    """Return the current size of the connected cluster."""
    import ray

    resources = ray.cluster_resources()
    return ClusterSize(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def cluster_limit() -> ClusterSize:
    """Return the size that the connected cluster can grow to."""
    settings, size = load_settings(), cluster_size()
    return ClusterSize(max(size.cpus, settings.ray_max_cpus), max(size.gpus, settings.ray_max_gpus))
