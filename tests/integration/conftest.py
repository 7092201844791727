"""What several of the integration tests look at: the main job on real data, once a session."""

from pathlib import Path
from typing import Any

import pytest

from flows.parameters import RecipeParameters, RunParameters, TrainParameters

WITH_SERVICES = {
    *("test_actor_pool.py", "test_classification.py", "test_flow_runs.py", "test_main_job.py", "test_metrics.py"),
    *("test_ray_of_a_run.py", "test_training.py"),
}
"""Files whose tests need the session's Ray and Prefect."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where two processes share the tests, have one do all that needs the session's Ray and Prefect."""
    from xdist.scheduler import LoadScopeScheduling

    class TwoGroups(LoadScopeScheduling):
        """As marks of groups would do it, which are without effect: github.com/pytest-dev/pytest-xdist/issues/1386."""

        def _split_scope(self, nodeid: str) -> str:
            return "services" if Path(nodeid.partition("::")[0]).name in WITH_SERVICES else "no services"

    return TwoGroups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "running_services" in getattr(item, "fixturenames", ()) and item.path.parent == Path(__file__).parent:
            assert item.path.name in WITH_SERVICES, f"WITH_SERVICES of tests/integration/conftest.py lacks {item.path}"


@pytest.fixture(scope="session")
def main_job(running_services: None, session_store: str) -> Any:
    """Train, register version 1 as champion, and classify the test images with it."""
    from flows.train_and_classify import train_and_classify

    return train_and_classify(
        TrainParameters(
            preset="quick",
            workers="2",
            recipe=RecipeParameters(epochs=4),
            run=RunParameters(tensorboard=True),
        )
    )
