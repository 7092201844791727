"""Train without the helper actors of Ray Train that have nothing to do, and without one that outlives a killed run.

Changes:   `TorchTrainer._create_default_callbacks` in Ray 2.60, in a subclass.
Why:       Ray Train starts an actor that hands out Ray Data shards, although there are none. It also starts a detached
           actor that removes the run's placement group if the controller dies. In a Ray that was started for the run,
           that actor queries a dashboard that doesn't exist. On a cluster, the controller creates the actor and then
           tells it to watch. If the controller is killed in between, the actor stays as long as the cluster.
Gain:      two processes fewer, each of which takes 1 % of a CPU during the training. No leaked actor.
Upstream:  ray-project/ray 65443 (one cleaner for each run). No public option exists. Pull request 61756 made the
           cleaner watch before the workers start, but still by a second call.
Remove:    when Ray Train starts its data actor on demand, and its cleaner watches from its own start.
If gone:   training starts with all of Ray Train's helpers, and logs one line.
Test:      tests/integration/test_ray_of_a_run.py, tests/unit/infra/upstream/test_patches.py
"""

import logging
from typing import Any

from ray.train.torch import TorchTrainer

TARGETS = (
    "ray.train.torch:TorchTrainer._create_default_callbacks",
    "ray.train.v2._internal.callbacks.datasets:DatasetsCallback",
    "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback.after_controller_start",
    "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleaner.start_monitoring",
)
"""The private names that this patch needs."""

_log = logging.getLogger(__name__)


class LeanTorchTrainer(TorchTrainer):  # type: ignore[misc] # Ray ships no types
    """A `TorchTrainer` without Ray Data.

    Args:
        arguments: arguments of `TorchTrainer`.
        ends_with_run: whether Ray was started for this run, and ends with it.
    """

    def __init__(self, *arguments: Any, ends_with_run: bool, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self.datasets:
            raise ValueError("LeanTorchTrainer doesn't support Ray Data datasets. Use TorchTrainer.")
        self._ends_with_run = ends_with_run

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        try:
            return _without_idle_helpers(callbacks, ends_with_run=self._ends_with_run)
        except (ImportError, AttributeError) as error:
            _log.warning("Training starts with all helper actors of Ray Train: %s", error)
            return callbacks


def _without_idle_helpers(callbacks: list[Any], *, ends_with_run: bool) -> list[Any]:
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    kept = [found for found in callbacks if type(found) is not DatasetsCallback]
    if ends_with_run:
        return [found for found in kept if type(found) is not PlacementGroupCleanerCallback]
    return [_watching_callback() if type(found) is PlacementGroupCleanerCallback else found for found in kept]


def _watching_callback() -> Any:
    """Make a callback whose cleaner watches the controller from its own start."""
    from ray.train.v2._internal.callbacks import placement_group_callback

    class WatchingCleaner(placement_group_callback.PlacementGroupCleaner):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.start_monitoring()

    class WatchingCallback(placement_group_callback.PlacementGroupCleanerCallback):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            placement_group_callback.PlacementGroupCleaner = WatchingCleaner  # in the controller's process
            super().after_controller_start(train_run_context)

    return WatchingCallback()
