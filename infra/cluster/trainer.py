"""Ray Train's trainer (Ray 2.60), without the actors that serve what is not asked for, and with one thing mended.

Mended: no actor stays when a run is killed while it starts. Ray Train's controller has a detached actor that removes
its placement group, should it die. A controller that dies between creating this actor and telling it to watch leaves it
there for as long as the cluster lives. Here it watches from its own start.

Left out, each a process that starts before the first step and costs one percent of a CPU for as long as training
lasts:

- what hands out shards of Ray Data's data sets: there are none;
- the coordinator of requests to the autoscaler, where there is room for all workers by now;
- what removes the placement group, on a Ray of the run's own: it asks the dashboard, which is not there, and the
  cluster ends with the run.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class Trainer(TorchTrainer):  # type: ignore[misc] # Ray ships no types
    """A `TorchTrainer` that has no data sets of Ray Data's.

    Args:
        arguments: as of `TorchTrainer`.
        has_room: whether the cluster holds all workers as it is, so that no autoscaler need be asked for more.
        ends_with_run: whether the cluster was started for this run alone.
    """

    def __init__(self, *arguments: Any, has_room: bool, ends_with_run: bool, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self.datasets:
            raise ValueError("This trainer hands out no data sets.")
        self._has_room, self._ends_with_run = has_room, ends_with_run

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = [found for found in super()._create_default_callbacks() if type(found) is not DatasetsCallback]
        if self._ends_with_run:
            return [found for found in callbacks if type(found) is not PlacementGroupCleanerCallback]
        return [_Callback() if type(found) is PlacementGroupCleanerCallback else found for found in callbacks]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if self._has_room and type(arguments["scaling_policy"]) is FixedScalingPolicy:
            arguments["scaling_policy"] = _FixedSize(self.scaling_config)
        return super()._initialize_and_run_controller(**arguments)


class _FixedSize(FixedScalingPolicy):  # type: ignore[misc]
    """Asks nobody for room."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Cleaner(PlacementGroupCleaner):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start_monitoring()


class _Callback(PlacementGroupCleanerCallback):  # type: ignore[misc]
    def after_controller_start(self, train_run_context: Any) -> None:
        placement_group_callback.PlacementGroupCleaner = _Cleaner  # in the controller's process
        super().after_controller_start(train_run_context)
