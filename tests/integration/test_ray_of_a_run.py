"""What a run's own Ray does without."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

ONLOOKERS = {"log_monitor.py", "monitor.py", "dashboard.py"}


def programs() -> set[str]:
    """Names of the files that this process's children were started with."""
    commands = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    return {Path(word).name for command in commands for word in command}


def test_ray_runs_without_the_processes_that_watch_it(running_services: None) -> None:
    running = programs()
    assert "raylet" in running
    assert running & ONLOOKERS == set()


def test_node_agent_misses_no_dashboard(main_job: Any) -> None:
    from ray._private.worker import _global_node

    [log] = Path(_global_node.get_logs_dir_path()).glob("dashboard_agent.log")
    assert "Get dashboard http address failed" not in log.read_text()


def test_training_starts_no_actor_for_what_it_does_not_use(main_job: Any) -> None:
    from ray._private.state import actors

    started = {actor["ActorClassName"] for actor in actors().values()}
    assert {"TrainController", "RayTrainWorker"} <= started
    assert not {name for name in started if "Dataset" in name or "Cleaner" in name}


def started_by(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the trainer would start its controller with."""
    arguments: dict[str, Any] = {}

    def note(_: Any, **found: Any) -> Any:
        arguments.update(found)
        return SimpleNamespace(error=None)

    with monkeypatch.context() as patch:
        patch.setattr("ray.train.torch.TorchTrainer._initialize_and_run_controller", note)
        trainer.fit()
    return arguments


@pytest.mark.parametrize("ends_with_run", [True, False])
def test_trainer_has_its_placement_group_removed_where_the_cluster_stays(
    ends_with_run: bool, main_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import ScalingConfig
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    from infra.upstream.ray_train_helper_actors import LeanTorchTrainer

    trainer = LeanTorchTrainer(print, scaling_config=ScalingConfig(num_workers=2), ends_with_run=ends_with_run)
    callbacks = started_by(trainer, monkeypatch)["callbacks"]
    assert any(isinstance(found, PlacementGroupCleanerCallback) for found in callbacks) != ends_with_run
