"""Do what an operator does in Prefect's UI."""

import re
import time

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import cancel, choose, newest_first, open_form, open_run, quick_run, submit_form
from tests.harness.served import Served, until

CANCEL_SECONDS = 15


def test_new_champion_starts_a_classification(served: Served, re_score: str) -> None:
    assert served.run(re_score)["created_by"]["type"] == "AUTOMATION"
    until(lambda: "10,000 images" in served.messages(re_score), 60)


def test_schedules_create_runs(served: Served) -> None:
    body = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
    for name in ("train", "classify", "train-and-classify"):
        wanted = body | {"deployments": {"name": {"any_": [name]}}}
        made = until(lambda wanted=wanted: served.post("/flow_runs/filter", wanted), 90)
        assert made[0]["auto_scheduled"]


def test_report_of_a_batch_shows_its_plots(served: Served, re_score: str, page: Page) -> None:
    _check_plots(page, served, re_score, "classification-report")


@pytest.mark.parametrize("pages", ["", "/v2"], ids=["older pages", "newer pages"])
def test_report_shows_names_unescaped(served: Served, re_score: str, page: Page, pages: str) -> None:
    artifact = served.artifacts(re_score)["classification-report"]["id"]
    page.goto(f"{served.pages}{pages}/artifacts/artifact/{artifact}")
    report = f"{served.environment['FMNIST_STORE']}/predictions/predictions/_reports/"
    expect(page.get_by_text(f"file://{report}").first).to_be_visible()
    expect(page.get_by_text("&#")).to_have_count(0)


def test_quick_run_without_new_images_completes_and_says_so(served: Served, re_score: str, page: Page) -> None:
    quick_run(page, served, "classify")
    newest = served.runs("classify")[0]
    assert served.wait(newest["id"]) == "Completed"
    lines = until(lambda: [x for x in served.messages(newest["id"]).splitlines() if "Nothing new" in x], 60)
    assert "table predictions holds all 10,000 images" in lines[0]
    open_run(page, served, newest["id"], "Logs")
    expect(page.get_by_text(lines[0]).first).to_be_visible()


def test_form_refuses_values_out_of_bounds(served: Served, re_score: str, page: Page) -> None:
    before = len(served.runs("classify"))
    submit = open_form(page, served, "classify")
    field = page.get_by_label("Largest error share")
    field.fill("1.5")
    submit.click()
    assert "less than or equal to 1" in field.evaluate("field => field.validationMessage")
    page.get_by_label("Prediction table").fill("no table/name")
    field.fill("0.5")
    submit.click()
    expect(page.get_by_text("'no table/name' does not match").first).to_be_visible()
    assert len(served.runs("classify")) == before


def test_run_from_the_form_shows_its_progress_logs_and_plots(served: Served, re_score: str, page: Page) -> None:
    submit = open_form(page, served, "train")
    choose(page, "Preset", "quick")
    page.get_by_label("Run Name").fill("from-the-form")
    submit_form(page, submit)
    [run] = [run["id"] for run in served.runs("train") if run["name"] == "from-the-form"]
    assert served.run(run)["parameters"]["parameters"]["preset"] == "quick"
    served.wait_for_progress(run, "train", beyond=0)
    seen = {_shown_progress(page, served, run) for _ in range(4)}
    assert len(seen) > 1, seen  # it advances
    until(lambda: "Rank 1 of 2 trains on cpu" in served.messages(run), 60)  # lines arrive in batches
    open_run(page, served, run, "Logs")
    expect(page.get_by_text("[rank 1] Rank 1 of 2 trains on cpu").first).to_be_visible()
    newest_first(page)
    coming = min(served.messages(run).count("[rank 0] Epoch ") + 1, 6)
    expect(page.get_by_text(f"[rank 0] Epoch {coming} of 6").first).to_be_visible(timeout=60_000)  # the page refreshes
    page.goto("about:blank")  # rendering it takes a CPU from the run
    assert served.wait(run) == "Completed", served.messages(run)
    open_run(page, served, run, "Logs")
    newest_first(page)
    expect(page.get_by_text("[rank 0] Epoch 6 of 6").first).to_be_visible()
    _check_plots(page, served, run, "training-report")


def test_cancelled_run_leaves_ray_empty_and_is_resumed_by_a_retry(served: Served, re_score: str, page: Page) -> None:
    run = served.start("train", preset="full", recipe={"epochs": 30})
    served.wait_for_progress(run, "train", beyond=10)
    cancel(page, served, run)
    began = time.monotonic()
    until(lambda: not served.ray_leftovers(), CANCEL_SECONDS)
    assert served.wait(run, seconds=CANCEL_SECONDS - (time.monotonic() - began)) == "Cancelled"
    expect(page.get_by_text("Cancelled").first).to_be_visible()
    page.goto("about:blank")
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: served.messages(run).count("Rank 0 of 2 trains") == 2, 60)
    again = until(lambda: served.messages(run).rpartition("Rank 0 of 2 trains")[2].partition("Epoch ")[2], 60)
    assert int(again.split()[0]) > 3  # the run resumed instead of starting over
    served.set_state(run, "CANCELLING", "Cancelling")
    assert served.wait(run, seconds=CANCEL_SECONDS) == "Cancelled"


def _shown_progress(page: Page, served: Served, run: str) -> str:
    artifact = served.artifacts(run)["train-progress"]["id"]
    page.goto(f"{served.pages}/v2/artifacts/artifact/{artifact}")
    return page.get_by_text("Progress:").first.inner_text()


def _check_plots(page: Page, served: Served, run: str, key: str) -> None:
    """Check that the run's page lists the report, and that the browser renders each of its plots."""
    open_run(page, served, run, "Artifacts")
    page.get_by_test_id("flow-run-artifacts-grid").get_by_text(key).first.click()
    page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()  # the newest of that key
    page.get_by_test_id("show-raw-data-button").wait_for()
    plots = page.locator("main img[src^='data:image']")
    plots.first.wait_for()
    page.wait_for_function("() => [...document.querySelectorAll('main img')].every(image => image.complete)")
    widths = plots.evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) >= 3
    assert all(width > 0 for width in widths), widths
