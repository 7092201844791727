"""What an operator does in Prefect's own pages with a training."""

import re
import time

from playwright.sync_api import Page, expect

from tests.browser.conftest import EMPTY_SECONDS
from tests.browser.pages import cancel, choose, look_at_pictures, open_form, open_run, submit_form
from tests.served import Served
from tests.waiting import until


def test_run_by_the_form_shows_its_progress_its_logs_and_its_pictures(
    served: Served, re_score: str, page: Page
) -> None:
    submit = open_form(page, served, "train")
    choose(page, "Preset", "quick")
    page.get_by_label("Run Name").fill("from-the-form")
    submit_form(page, submit)
    [run] = [run["id"] for run in served.runs("train") if run["name"] == "from-the-form"]
    assert served.run(run)["parameters"]["parameters"]["preset"] == "quick"
    served.wait_for_progress(run, "train", beyond=0)
    first = _shown_progress(page, served, run)
    until(lambda: _shown_progress(page, served, run) != first)  # it moves
    until(lambda: "Rank 1 of 2 trains on cpu" in served.messages(run))  # lines come in batches
    open_run(page, served, run, "Logs")
    expect(page.get_by_text("[rank 1] Rank 1 of 2 trains on cpu").first).to_be_visible()
    page.get_by_role("combobox", name="log sort order").click()
    page.get_by_role("option", name="Newest to oldest").click()
    shown = page.get_by_text(re.compile(r"\[rank 0\] Epoch \d of 6")).count()
    expect(page.get_by_text(f"[rank 0] Epoch {shown + 1} of 6").first).to_be_visible()  # the page renews itself
    page.goto("about:blank")  # drawing it takes a CPU from the run
    assert served.wait(run) == "Completed", served.messages(run)
    look_at_pictures(page, served, run, "training-report")


def test_cancelled_run_leaves_ray_empty_and_is_resumed_by_a_retry(served: Served, re_score: str, page: Page) -> None:
    run = served.start("train", preset="full", recipe={"epochs": 30})
    served.wait_for_progress(run, "train", beyond=10)
    cancel(page, served, run)
    began = time.monotonic()
    until(lambda: not served.ray_leftovers(), EMPTY_SECONDS)
    assert served.wait(run, seconds=EMPTY_SECONDS - (time.monotonic() - began)) == "Cancelled"
    expect(page.get_by_text("Cancelled").first).to_be_visible()
    page.goto("about:blank")
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: served.messages(run).count("Rank 0 of 2 trains") == 2)
    again = until(lambda: served.messages(run).rpartition("Rank 0 of 2 trains")[2].partition("Epoch ")[2])
    assert int(again.split()[0]) > 3  # it went on, and did not begin anew
    served.set_state(run, "CANCELLING", "Cancelling")
    assert served.wait(run, seconds=EMPTY_SECONDS) == "Cancelled"


def _shown_progress(page: Page, served: Served, run: str) -> str:
    artifact = served.artifacts(run)["train-progress"]["id"]
    page.goto(f"{served.pages}/v2/artifacts/artifact/{artifact}")
    return page.get_by_text("Progress:").first.inner_text()
