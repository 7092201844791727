"""A step that failed is tried again as often as the settings say, unless what it failed of would end it again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmnist_model.errors import InvalidDataset, InvalidImage, InvalidWeights
from infra.errors import JobError, JobStopped, RequestError
from infra.storage.object_store import StoreUnavailable
from tasks.step import step

pytestmark = [
    pytest.mark.usefixtures("running_services"),
    pytest.mark.filterwarnings("ignore:Logger 'prefect.task_runs'"),  # a task outside of a flow has no log there
]


@pytest.fixture
def tries_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int | None], int]:
    """How often a step is tried that fails each time."""

    def tries_of(error: Exception, retries: int | None) -> int:
        if retries is None:
            monkeypatch.delenv("FMNIST_RETRIES", raising=False)
        else:
            monkeypatch.setenv("FMNIST_RETRIES", str(retries))
        tries = 0

        @step("fail")
        def fail() -> None:
            nonlocal tries
            tries += 1
            raise error

        with pytest.raises(type(error)) as caught:
            fail.with_options(retry_delay_seconds=0)()
        assert str(caught.value) == str(error)
        return tries

    return tries_of


@pytest.mark.parametrize("retries", [1, 2])
@pytest.mark.parametrize(
    "error", [JobError("a worker is gone"), OSError("the disk is gone"), StoreUnavailable("it is down")], ids=type
)
def test_what_may_pass_is_tried_again_as_often_as_the_settings_say(
    tries_of: Callable[[Exception, int | None], int], error: Exception, retries: int
):
    assert tries_of(error, retries) == 1 + retries


@pytest.mark.parametrize(
    "error",
    [
        RequestError("no such store"),
        JobStopped("the loss is no number"),
        InvalidDataset("no labels"),
        InvalidImage("no image"),
        InvalidWeights("another network's"),
    ],
    ids=type,
)
def test_what_lasts_is_not_tried_again(tries_of: Callable[[Exception, int | None], int], error: Exception):
    assert tries_of(error, 2) == 1


def test_nothing_is_tried_again_by_default(
    tries_of: Callable[[Exception, int | None], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # a .env file is read from the folder that commands run in
    assert tries_of(JobError("the store is gone"), None) == 1


def test_step_that_succeeds_when_tried_again_gives_its_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FMNIST_RETRIES", "1")
    tries = iter([JobError("the store is gone")])

    @step("fail once")
    def fail_once() -> str:
        for error in tries:
            raise error
        return "done"

    assert fail_once.with_options(retry_delay_seconds=0)() == "done"


def test_step_is_not_answered_from_a_cache():
    calls = 0

    @step("count")
    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    assert [count(), count()] == [1, 2]


def test_each_try_waits_twice_as_long_as_the_one_before():
    @step("wait")
    def wait() -> None: ...

    assert wait.retry_delay_seconds[:3] == [10, 20, 40]
