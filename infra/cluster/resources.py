"""What Ray actors take of a cluster, and how many of them find room."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ActorResources:
    """What each actor takes of a cluster."""

    cpus: float = 1.0
    gpus: float | None = None
    """None: one where there are GPUs; a share of one lets several actors have the same."""
    memory_bytes: int = 0
    """0: not reckoned with."""
    most: int | None = None
    """Actors; None: as many as there is room for."""

    def options(self, *, has_gpus: bool) -> dict[str, Any]:
        """As Ray calls them."""
        gpus = self.gpus if self.gpus is not None else float(has_gpus)
        return {"num_cpus": self.cpus, "num_gpus": gpus} | ({"memory": self.memory_bytes} if self.memory_bytes else {})

    def room(self, *, cpus: float, gpus: float) -> int:
        """How many actors find room at once; 1 where there is none yet, so that a cluster that grows on demand does."""
        wanted = self.options(has_gpus=gpus > 0)
        there = {"num_cpus": cpus, "num_gpus": gpus}
        # A little more than the quotient: 1 // 0.2 is 4.
        found = min((there[name] / wanted[name] + 1e-6 for name in there if wanted[name]), default=float("inf"))
        return int(max(1, min(found, self.most or found, 100_000)))
