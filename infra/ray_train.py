"""Ray Train's trainer, with one thing mended (Ray 2.60): no actor stays when a run is killed while it starts.

Ray Train's controller has a detached actor that removes its placement group, should it die. A controller that dies
between creating this actor and telling it to watch leaves it there for as long as the cluster lives. Here it watches
from its own start.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner


class Trainer(TorchTrainer):  # type: ignore[misc] # Ray ships no types
    """A `TorchTrainer`."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [_Callback() if type(found) is PlacementGroupCleanerCallback else found for found in callbacks]


class _Cleaner(PlacementGroupCleaner):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start_monitoring()


class _Callback(PlacementGroupCleanerCallback):  # type: ignore[misc]
    def after_controller_start(self, train_run_context: Any) -> None:
        placement_group_callback.PlacementGroupCleaner = _Cleaner  # in the controller's process
        super().after_controller_start(train_run_context)
