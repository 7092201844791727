"""Prefect's own pages in a real browser, before a real server, worker and Ray.

A lost training is found out after two minutes, and keeps others from starting until then. So the file whose tests lose
runs comes first by name, then those that train nothing; what became of the lost ones, and trainings, come last.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.absent import install
from tests.served import Served, serving
from tests.waiting import until

FIRST_SEED = 20_261_123
PAGE_MILLISECONDS = 60_000
"""After which a page is held for broken that does not show what it should."""
EMPTY_SECONDS = 15
"""In which Ray has none of a run's work after its end."""
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cancels", type=int, default=2, help="how many runs to cancel at random moments")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cancel_seed" in metafunc.fixturenames:
        count = metafunc.config.getoption("--cancels")
        metafunc.parametrize("cancel_seed", range(FIRST_SEED, FIRST_SEED + count))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, data_store: str) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), data_store) as running:
        yield running


@pytest.fixture(scope="session")
def re_score(served: Served) -> str:
    """The first model was trained, which made it champion: the run of `classify` that this started, when it is done."""
    [first] = [run["id"] for run in served.runs("train") if run["name"] == "first-model"]
    assert served.wait(first) == "Completed", served.messages(first)
    [run] = until(lambda: served.runs("classify"))
    assert served.wait(run["id"]) == "Completed", served.messages(run["id"])
    return str(run["id"])


@dataclass(frozen=True)
class LostRuns:
    """Flow runs whose processes were killed."""

    unseen: str
    """A training whose worker was killed before: nobody says that it is lost, until the server finds it out."""
    seen: str
    """A classification whose worker was there."""


@pytest.fixture(scope="session")
def lost_runs(served: Served, re_score: str) -> LostRuns:
    """Kill both, and see that Ray ends what they did."""
    until(served.has_worker)  # another test may have killed it
    unseen = served.start("train", preset="full")
    served.wait_for_progress(unseen, "train", beyond=10)
    served.worker().kill()
    _kill_process_of(unseen, served)
    until(served.has_worker)
    seen = served.start("classify", table="lost", resources={"worker_cpus": 0.5})
    until(lambda: served.tasks("classify", "Running", flow_run=seen))
    _kill_process_of(seen, served)
    return LostRuns(unseen, seen)


def _kill_process_of(run: str, served: Served) -> None:
    """Kill the only flow run's process."""
    [process] = served.flow_processes()
    assert served.state(run) == "Running"
    process.kill()
    until(lambda: not served.ray_leftovers(), EMPTY_SECONDS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = installed() or _install()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            expect.set_options(timeout=PAGE_MILLISECONDS)
            yield browser
        finally:
            browser.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PAGE_MILLISECONDS)
    try:
        yield page
    finally:
        page.screenshot(path=tmp_path / "last.png")  # for the one who looks for what went wrong
        context.close()


def installed() -> str | None:
    """Chromium, where it is installed."""
    return next(filter(None, map(shutil.which, _PROGRAMS)), None)


def _install() -> str:
    """Chromium, where this is CI; else skip."""
    install("chromium", "Chromium")
    program = installed()
    assert program is not None
    return program
