"""A step of a flow: a Prefect task, tried again where that may help."""

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
"""Before the first retry; twice as long before each further one."""


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a Prefect task, which is never answered from a cache.

    One that failed is tried again as often as FMNIST_RETRIES says, later each time, unless what it failed of lasts and
    would end it again. What it had done is in the store, so that it goes on from there.
    """
    return task(
        name=name,
        cache_policy=NO_CACHE,
        retries=_MOST_RETRIES,
        retry_delay_seconds=exponential_backoff(_BACK_OFF_SECONDS),
        retry_condition_fn=is_transient,
    )


def is_transient(_: Any, task_run: Any, state: Any) -> bool:
    """Whether to retry a failed task run: a retry may succeed, and not all of them are used up."""
    error = state.result(raise_on_failure=False)
    is_permanent = isinstance(error, RequestError | InvalidInput | JobStopped)
    return task_run.run_count <= load_settings().retries and not is_permanent
