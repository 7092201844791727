"""Run the main job on real data once per session, and schedule the tests that share it."""

from pathlib import Path
from typing import Any

import pytest

from flows.parameters import RecipeParameters, RunParameters, TrainParameters

WITH_SERVICES = {
    *("test_actor_pool.py", "test_classification.py", "test_flow_runs.py", "test_main_job.py", "test_metrics.py"),
    *("test_ray_of_a_run.py", "test_training.py"),
}
"""Files with tests that need the session's Ray and Prefect."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """If several processes share the tests, run all tests that need the session's Ray and Prefect in one of them."""
    from xdist.scheduler import LoadScopeScheduling

    class TwoGroups(LoadScopeScheduling):
        """Replaces xdist_group marks, which have no effect: github.com/pytest-dev/pytest-xdist/issues/1386."""

        def _split_scope(self, nodeid: str) -> str:
            return "services" if Path(nodeid.partition("::")[0]).name in WITH_SERVICES else "no services"

    return TwoGroups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "running_services" in getattr(item, "fixturenames", ()) and item.path.parent == Path(__file__).parent:
            assert item.path.name in WITH_SERVICES, f"add {item.path.name} to WITH_SERVICES in {__file__}"


@pytest.fixture(scope="session")
def main_job(running_services: None, session_store: str) -> Any:
    """Train a model, register it as version 1 and champion, and classify the test images with it."""
    from flows.train_and_classify import train_and_classify

    return train_and_classify(
        TrainParameters(
            preset="quick",
            workers="2",
            recipe=RecipeParameters(epochs=4),
            run=RunParameters(tensorboard=True),
        )
    )
