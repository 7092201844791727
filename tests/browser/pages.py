"""Steps on Prefect's pages, by what a person sees there."""

import time

from playwright.sync_api import Locator, Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.harness.served import Served

_FORM_SETTLES_SECONDS = 1.5
"""Until it has filled in the defaults; what is typed before is overwritten."""


def open_form(page: Page, served: Served, deployment: str) -> Locator:
    """Open the page for a custom run; returns its button to submit."""
    page.goto(f"{served.pages}/v2/deployments/deployment/{served.deployment(deployment)['id']}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    submit = page.get_by_role("button", name="Submit")
    submit.wait_for()
    time.sleep(_FORM_SETTLES_SECONDS)
    return submit


def submit_form(page: Page, submit: Locator) -> None:
    """Submit a form, and look at the run that it made."""
    submit.click()
    link = page.get_by_role("link", name="View run")
    try:
        link.wait_for(timeout=15_000)
    except PlaywrightTimeout:  # the form was still being drawn, and did not see the click
        submit.click()
    link.click()


def quick_run(page: Page, served: Served, deployment: str) -> None:
    """Start a run with no input."""
    page.goto(f"{served.pages}/v2/deployments/deployment/{served.deployment(deployment)['id']}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Quick run").click()
    page.get_by_role("link", name="View run").wait_for()


def choose(page: Page, field: str, value: str) -> None:
    """Choose one of a field's values."""
    page.get_by_label(field).click()
    page.get_by_role("option", name=value, exact=True).click()


def open_run(page: Page, served: Served, flow_run: str, tab: str) -> None:
    """Open a flow run's page at a tab."""
    page.goto(f"{served.pages}/v2/runs/flow-run/{flow_run}?tab={tab}")


def newest_first(page: Page) -> None:
    """Sort the log that is shown."""
    page.get_by_role("combobox", name="log sort order").click()
    page.get_by_role("option", name="Newest to oldest").click()


def cancel(page: Page, served: Served, flow_run: str) -> None:
    """Cancel a run by the menu of its page."""
    open_run(page, served, flow_run, "Logs")
    menu = page.locator("main").get_by_role("button").filter(has=page.locator(".sr-only", has_text="Open menu"))
    menu.first.click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Cancel Flow Run").click()
