"""What several of the integration tests look at: the main job on real data, once a session."""

from typing import Any

import pytest

from flows.parameters import RecipeParameters, RunParameters, TrainParameters


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
