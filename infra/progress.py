"""Where work that runs in the cluster says how far it is, and whoever wants to know looks.

One small actor a driver, found by name within the driver's namespace. Writers don't wait, and lose nothing but a line
of progress where the actor is gone; readers poll.
"""

from typing import Any

_NAME = "progress"


class _Board:
    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}
        self._number = 0

    def post(self, entry: dict[str, Any]) -> None:
        self._latest = entry
        self._number += 1

    def read(self) -> tuple[int, dict[str, Any]]:
        return self._number, self._latest


def progress_board() -> Any:
    """The board of this driver: a Ray actor handle with `post(entry)` and `read()`, started by whoever asks first."""
    import ray

    return ray.remote(_Board).options(name=_NAME, get_if_exists=True, num_cpus=0).remote()
