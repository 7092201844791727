"""Take the screenshots of Prefect's UI that the README and the docs show.

python -m tests.browser.screenshots FOLDER
"""

import re
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import find_chromium
from tests.browser.pages import newest_first, open_form, open_run
from tests.conftest import TEST_DATA
from tests.harness.served import Served, serving, until

SIZE = {"width": 1300, "height": 1000}


def take(page: Page, served: Served, folder: Path) -> None:
    """Take a running flow, the form, and the report of a batch."""
    [first] = [run["id"] for run in served.runs("train") if run["name"] == "first-model"]
    served.wait_for_progress(first, "train", beyond=60)
    open_run(page, served, first, "Logs")
    newest_first(page)
    page.get_by_text("Epoch 4 of 6").first.wait_for()
    page.locator("main").evaluate("main => main.scrollBy(0, 110)")
    page.screenshot(path=folder / "prefect-run.png")
    served.wait(first)
    [re_score] = until(lambda: served.runs("classify"), 60)
    served.wait(re_score["id"])
    open_form(page, served, "classify")
    page.screenshot(path=folder / "prefect-form.png")
    open_run(page, served, re_score["id"], "Artifacts")
    page.get_by_test_id("flow-run-artifacts-grid").get_by_text("classification-report").first.click()
    page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()
    page.get_by_role("heading", name="Least confident").wait_for()
    page.get_by_role("heading", name="Least confident").evaluate("heading => heading.scrollIntoView()")
    page.wait_for_timeout(1000)
    page.screenshot(path=folder / "prefect-report.png")


def main() -> None:
    """Run `fmnist serve`, and write the screenshots to the folder."""
    folder = Path(sys.argv[1])
    with (
        tempfile.TemporaryDirectory() as name,
        serving(Path(name), TEST_DATA.as_uri()) as served,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(60_000)
        take(page, served, folder)
        browser.close()


if __name__ == "__main__":
    main()
