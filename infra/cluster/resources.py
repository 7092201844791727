"""Define the resources of Ray actors, and count how many actors fit into a cluster."""

from typing import Annotated, Any

from pydantic import Field

from infra.form import FormModel

_MAX_WORKERS = 100_000


class ActorResources(FormModel):
    """Resources of each classification worker, and how many workers may run."""

    worker_cpus: Annotated[
        float, Field(title="CPUs per worker", ge=0, le=1024, description="CPUs to reserve for each worker.")
    ] = 1.0
    worker_gpus: Annotated[
        float | None,
        Field(
            title="GPUs per worker",
            ge=0,
            le=64,
            description="GPUs to reserve for each worker. With 0.5, two workers share a GPU. By default, each worker "
            "takes one GPU if the cluster has any.",
        ),
    ] = None
    worker_memory_gib: Annotated[
        float,
        Field(
            title="Memory per worker",
            ge=0,
            le=16384,
            description="Memory to reserve for each worker, in GiB. 0 reserves none.",
        ),
    ] = 0.0
    max_workers: Annotated[
        int | None,
        Field(
            title="Maximum workers",
            ge=1,
            le=_MAX_WORKERS,
            description="Maximum number of workers. By default, as many run as fit into the cluster.",
        ),
    ] = None

    def options(self, *, has_gpus: bool) -> dict[str, Any]:
        """Return the arguments of Ray's `options` for one actor: CPUs, GPUs and, if reserved, bytes of memory."""
        gpus = self.worker_gpus if self.worker_gpus is not None else float(has_gpus)
        options = {"num_cpus": self.worker_cpus, "num_gpus": gpus}
        return options | ({"memory": int(self.worker_memory_gib * 2**30)} if self.worker_memory_gib else {})

    def room(self, *, cpus: float, gpus: float) -> int:
        """Count the actors that fit into a cluster at once.

        The count is at least 1. A cluster that grows on demand starts without room, and grows for this actor.

        Args:
            cpus: CPUs of the whole cluster.
            gpus: GPUs of the whole cluster.
        """
        wanted = self.options(has_gpus=gpus > 0)
        available = {"num_cpus": cpus, "num_gpus": gpus}
        # The small addition makes up for rounding errors: 1 // 0.2 is 4.
        counts = [available[name] / wanted[name] + 1e-6 for name in available if wanted[name]]
        fitting = min(counts, default=float("inf"))
        return int(max(1, min(fitting, self.max_workers or _MAX_WORKERS)))
