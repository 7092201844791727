"""Steps in Prefect's UI, found by what a user sees."""

import time

from playwright.sync_api import Locator, Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.harness.served import Served

_FORM_SETTLES_SECONDS = 1.5
"""Time until the form has filled in the defaults. They overwrite what is typed earlier."""


def open_form(page: Page, served: Served, deployment: str) -> Locator:
    """Open the form for a custom run, and return its submit button."""
    page.goto(f"{served.pages}/v2/deployments/deployment/{served.deployment(deployment)['id']}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    submit = page.get_by_role("button", name="Submit")
    submit.wait_for()
    time.sleep(_FORM_SETTLES_SECONDS)
    return submit


def submit_form(page: Page, submit: Locator) -> None:
    """Submit the form, and open the run that it created."""
    submit.click()
    link = page.get_by_role("link", name="View run")
    try:
        link.wait_for(timeout=15_000)
    except PlaywrightTimeout:  # the form was still rendering and missed the click
        submit.click()
    link.click()


def quick_run(page: Page, served: Served, deployment: str) -> None:
    """Start a run without input."""
    page.goto(f"{served.pages}/v2/deployments/deployment/{served.deployment(deployment)['id']}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Quick run").click()
    page.get_by_role("link", name="View run").wait_for()


def choose(page: Page, field: str, value: str) -> None:
    """Choose a value of a field."""
    page.get_by_label(field).click()
    page.get_by_role("option", name=value, exact=True).click()


def open_run(page: Page, served: Served, flow_run: str, tab: str) -> None:
    """Open a tab of a flow run's page."""
    page.goto(f"{served.pages}/v2/runs/flow-run/{flow_run}?tab={tab}")


def newest_first(page: Page) -> None:
    """Sort the log newest first."""
    page.get_by_role("combobox", name="log sort order").click()
    page.get_by_role("option", name="Newest to oldest").click()


def cancel(page: Page, served: Served, flow_run: str) -> None:
    """Cancel a run from the menu of its page."""
    open_run(page, served, flow_run, "Logs")
    menu = page.locator("main").get_by_role("button").filter(has=page.locator(".sr-only", has_text="Open menu"))
    menu.first.click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Cancel Flow Run").click()
