"""The processes that train one network together."""

import torch.distributed as dist
from torch import Tensor


class Ranks:
    """A process group, seen from one of its ranks."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Look up this process in the group.

        Args:
            group: the ranks that train together, or None for a process that trains alone.
        """
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)

    def own_slice(self, items: int) -> slice:
        """Return this rank's slice of `items` things. Sizes differ between ranks by one at most."""
        return slice(items * self.rank // self.count, items * (self.rank + 1) // self.count)

    def sum(self, values: Tensor) -> None:
        """Replace `values` by their sum over all ranks. All ranks must call this together."""
        if self.count > 1:
            dist.all_reduce(values, group=self.group)
