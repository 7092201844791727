"""Failed steps are retried up to FMNIST_RETRIES times, unless the error is permanent."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmnist_model.errors import InvalidDataset, InvalidImage, InvalidWeights
from infra.errors import JobError, JobStopped, RequestError
from infra.storage.object_store import StoreMisconfigured, StoreUnavailable
from tasks.step import step

pytestmark = [
    pytest.mark.usefixtures("running_services"),
    pytest.mark.filterwarnings("ignore:Logger 'prefect.task_runs'"),  # these tasks run outside of a flow
]


@pytest.fixture
def count_attempts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int | None], int]:
    """Count the attempts of a step that always fails with an error, for a value of FMNIST_RETRIES."""

    def count_attempts(error: Exception, retries: int | None) -> int:
        if retries is None:
            monkeypatch.delenv("FMNIST_RETRIES", raising=False)
        else:
            monkeypatch.setenv("FMNIST_RETRIES", str(retries))
        attempts = 0

        @step("fail")
        def fail() -> None:
            nonlocal attempts
            attempts += 1
            raise error

        with pytest.raises(type(error)) as caught:
            fail.with_options(retry_delay_seconds=0)()
        assert str(caught.value) == str(error)
        return attempts

    return count_attempts


@pytest.mark.parametrize("retries", [1, 2])
@pytest.mark.parametrize(
    "error", [JobError("a worker died"), OSError("the disk is gone"), StoreUnavailable("it is down")], ids=type
)
def test_transient_error_is_retried_as_often_as_configured(
    count_attempts: Callable[[Exception, int | None], int], error: Exception, retries: int
):
    assert count_attempts(error, retries) == 1 + retries


@pytest.mark.parametrize(
    "error",
    [
        RequestError("no such model"),
        StoreMisconfigured("no such bucket"),
        JobStopped("the loss is NaN"),
        InvalidDataset("no labels"),
        InvalidImage("not an image"),
        InvalidWeights("other shapes"),
    ],
    ids=type,
)
def test_permanent_error_is_not_retried(count_attempts: Callable[[Exception, int | None], int], error: Exception):
    assert count_attempts(error, 2) == 1


def test_nothing_is_retried_by_default(
    count_attempts: Callable[[Exception, int | None], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # so that no .env file sets FMNIST_RETRIES
    assert count_attempts(JobError("the store is gone"), None) == 1


def test_successful_retry_returns_the_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FMNIST_RETRIES", "1")
    errors = iter([JobError("the store is gone")])

    @step("fail once")
    def fail_once() -> str:
        for error in errors:
            raise error
        return "done"

    assert fail_once.with_options(retry_delay_seconds=0)() == "done"


def test_results_are_not_cached():
    calls = 0

    @step("count")
    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    assert [count(), count()] == [1, 2]


def test_delay_doubles_with_each_retry():
    @step("wait")
    def wait() -> None: ...

    assert wait.retry_delay_seconds[:3] == [10, 20, 40]
