"""Retries with exponential backoff and jitter."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import retry, retry_if_exception, retry_if_exception_type, stop_after_attempt, wait_random_exponential

P = ParamSpec("P")
R = TypeVar("R")


def retry_on(
    error: type[Exception] | Callable[[BaseException], bool],
    *,
    attempts: int,
    longest_wait_seconds: float,
    first_wait_seconds: float = 0.05,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function to call it again after some errors. The last error is raised as it is.

    Args:
        error: the class to retry on, or a function that tells whether to retry on an error.
        attempts: maximum number of calls, the first one included.
        longest_wait_seconds: maximum wait between two calls.
        first_wait_seconds: maximum wait before the second call. It doubles with each further call.
    """
    condition = retry_if_exception_type(error) if isinstance(error, type) else retry_if_exception(error)
    return retry(
        retry=condition,
        wait=wait_random_exponential(multiplier=first_wait_seconds, max=longest_wait_seconds),
        stop=stop_after_attempt(attempts),
        reraise=True,
    )
