"""A function is called again after the errors that were named, and no others, up to a number of calls."""

import pytest

from infra.storage.retries import retry_on


class Flaky:
    """Raises errors in turn, then returns."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def call(flaky: Flaky, attempts: int = 3) -> str:
    return retry_on(KeyError, attempts=attempts, first_wait_seconds=0, longest_wait_seconds=0)(flaky.__call__)()


def test_function_is_called_until_it_succeeds() -> None:
    flaky = Flaky(KeyError("1"), KeyError("2"))
    assert (call(flaky), flaky.calls) == ("done", 3)


def test_last_error_is_raised_as_it_is() -> None:
    flaky = Flaky(KeyError("1"), KeyError("2"), KeyError("3"))
    with pytest.raises(KeyError, match="2"):
        call(flaky, attempts=2)
    assert flaky.calls == 2


def test_other_error_is_not_retried() -> None:
    flaky = Flaky(OSError("1"))
    with pytest.raises(OSError, match="1"):
        call(flaky)
    assert flaky.calls == 1


def test_condition_decides_on_retrying() -> None:
    flaky = Flaky(OSError("again"), OSError("enough"))
    retried = retry_on(lambda error: "again" in str(error), attempts=5, first_wait_seconds=0, longest_wait_seconds=0)
    with pytest.raises(OSError, match="enough"):
        retried(flaky.__call__)()
    assert flaky.calls == 2
