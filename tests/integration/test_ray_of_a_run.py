"""Check that the Ray of a single run starts only what the run needs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

MONITORING = {"log_monitor.py", "monitor.py", "dashboard.py"}


def programs() -> set[str]:
    """Return the file names in the commands of this process's children."""
    commands = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    return {Path(word).name for command in commands for word in command}


def test_ray_runs_without_monitoring_processes(running_services: None) -> None:
    running = programs()
    assert "raylet" in running
    assert running & MONITORING == set()


def test_node_agent_does_not_look_for_a_dashboard(main_job: Any) -> None:
    from ray._private.worker import _global_node

    [log] = Path(_global_node.get_logs_dir_path()).glob("dashboard_agent.log")
    assert "Get dashboard http address failed" not in log.read_text()


def test_training_starts_no_idle_helper_actors(main_job: Any) -> None:
    from ray._private.state import actors

    started = {actor["ActorClassName"] for actor in actors().values()}
    assert {"TrainController", "RayTrainWorker"} <= started
    assert not {name for name in started if "Dataset" in name or "Cleaner" in name}


def controller_arguments(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the arguments that the trainer would start its controller with."""
    arguments: dict[str, Any] = {}

    def record(_: Any, **found: Any) -> Any:
        arguments.update(found)
        return SimpleNamespace(error=None)

    with monkeypatch.context() as patch:
        patch.setattr("ray.train.torch.TorchTrainer._initialize_and_run_controller", record)
        trainer.fit()
    return arguments


@pytest.mark.parametrize("ends_with_run", [True, False])
def test_trainer_removes_its_placement_group_from_a_permanent_cluster(
    ends_with_run: bool, main_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import ScalingConfig
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    from infra.upstream.ray_train_helper_actors import LeanTorchTrainer

    trainer = LeanTorchTrainer(print, scaling_config=ScalingConfig(num_workers=2), ends_with_run=ends_with_run)
    callbacks = controller_arguments(trainer, monkeypatch)["callbacks"]
    assert any(isinstance(found, PlacementGroupCleanerCallback) for found in callbacks) != ends_with_run
