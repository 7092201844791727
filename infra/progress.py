"""Where work that runs in the cluster says how far it is, and whoever wants to know looks.

One small actor a driver, found by name within the driver's namespace. Writers don't wait, and lose nothing but a line
of progress where the actor is gone; readers poll.
"""

from typing import Any

_NAME = "progress"


class _Board:
    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}

    def post(self, entry: dict[str, Any]) -> None:
        self._latest = entry

    def read(self) -> dict[str, Any]:
        return self._latest


class ProgressBoard:
    """The board of this driver, started by whoever asks for it first."""

    def __init__(self) -> None:
        import ray

        self._actor = ray.remote(_Board).options(name=_NAME, get_if_exists=True, num_cpus=0).remote()

    def post(self, stage: str, **figures: Any) -> None:
        """Say where the work stands; returns at once.

        Args:
            stage: what is being done, by the name that readers know it by.
            figures: how far, in numbers and short texts.
        """
        self._actor.post.remote({"stage": stage} | figures)

    def read(self) -> dict[str, Any]:
        """The latest entry: its figures and its stage; empty before the first."""
        import ray

        latest: dict[str, Any] = ray.get(self._actor.read.remote(), timeout=10)
        return latest
