"""Share one `fmnist serve` and one browser between the tests of Prefect's UI."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.harness.absent import install
from tests.harness.served import Served, serving, until

FIRST_SEED = 20_261_123
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cancels", type=int, default=2, help="number of runs to cancel at random moments")


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
    """Wait until the first model is trained, and return the run of `classify` that the new champion started."""
    [first] = [run["id"] for run in served.runs("train") if run["name"] == "first-model"]
    assert served.wait(first) == "Completed", served.messages(first)
    [run] = until(lambda: served.runs("classify"), 60)
    assert served.wait(run["id"]) == "Completed", served.messages(run["id"])
    return str(run["id"])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find_chromium() or _install()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    try:
        yield page
    finally:
        page.screenshot(path=tmp_path / "last.png")  # shows what went wrong
        context.close()


def find_chromium() -> str | None:
    """Return the path of Chromium if it is installed."""
    return next(filter(None, map(shutil.which, _PROGRAMS)), None)


def _install() -> str:
    """Install Chromium in CI. Elsewhere, skip the test."""
    install("chromium", "Chromium")
    program = find_chromium()
    assert program is not None
    return program
