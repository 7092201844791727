"""A step of a flow: a Prefect task that is retried if its error is transient."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from fmnist_model.errors import InvalidInput
from infra.errors import JobStopped, RequestError
from infra.settings import load_settings

P = ParamSpec("P")
R = TypeVar("R")

_MOST_RETRIES = 10
_BACK_OFF_SECONDS = 10
"""Delay before the first retry. Each further delay is twice as long."""


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a Prefect task without a result cache.

    A failed step is retried up to FMNIST_RETRIES times with exponential backoff, unless the error is permanent. Its
    finished work is in the store, so a retry resumes there.
    """
    return task(
        name=name,
        cache_policy=NO_CACHE,
        retries=_MOST_RETRIES,
        retry_delay_seconds=exponential_backoff(_BACK_OFF_SECONDS),
        retry_condition_fn=is_transient,
    )


def is_transient(_: Any, task_run: Any, state: Any) -> bool:
    """Return whether a retry of a failed task run may succeed, and is still allowed."""
    error = state.result(raise_on_failure=False)
    is_permanent = isinstance(error, RequestError | InvalidInput | JobStopped)
    return task_run.run_count <= load_settings().retries and not is_permanent
