"""What an operator does in Prefect's own pages."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import look_at_pictures, open_form, open_run, quick_run
from tests.served import Served
from tests.waiting import until


def test_promoted_model_starts_a_re_score(served: Served, re_score: str) -> None:
    assert served.run(re_score)["created_by"]["type"] == "AUTOMATION"
    until(lambda: "10,000 images classified" in served.messages(re_score))


def test_schedules_make_runs(served: Served) -> None:
    body = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
    for name in ("train", "classify", "train-and-classify"):
        wanted = body | {"deployments": {"name": {"any_": [name]}}}
        made = until(lambda wanted=wanted: served.post("/flow_runs/filter", wanted))
        assert made[0]["auto_scheduled"]


def test_report_of_a_batch_shows_its_pictures(served: Served, re_score: str, page: Page) -> None:
    look_at_pictures(page, served, re_score, "classification-report")


@pytest.mark.parametrize("pages", ["", "/v2"], ids=["older pages", "newer pages"])
def test_names_in_a_report_stand_as_they_are(served: Served, re_score: str, page: Page, pages: str) -> None:
    artifact = served.artifacts(re_score)["classification-report"]["id"]
    page.goto(f"{served.pages}{pages}/artifacts/artifact/{artifact}")
    report = f"{served.environment['FMNIST_STORE']}/predictions/predictions/batch="
    expect(page.get_by_text(f"file://{report}").first).to_be_visible()
    expect(page.get_by_text("&#")).to_have_count(0)


def test_quick_run_with_nothing_new_is_green_and_says_so(served: Served, re_score: str, page: Page) -> None:
    quick_run(page, served, "classify")
    newest = served.runs("classify")[0]
    assert served.wait(newest["id"]) == "Completed"
    words = "Nothing new: table predictions holds all 10,000 images"
    until(lambda: words in served.messages(newest["id"]))
    open_run(page, served, newest["id"], "Logs")
    expect(page.get_by_text(words).first).to_be_visible()


def test_value_out_of_bounds_is_refused_with_a_sentence(served: Served, re_score: str, page: Page) -> None:
    before = len(served.runs("classify"))
    submit = open_form(page, served, "classify")
    field = page.get_by_label("Largest error share")
    field.fill("1.5")
    submit.click()
    assert field.evaluate("field => field.validationMessage") == "Value must be less than or equal to 1."
    page.get_by_label("Prediction table").fill("no table/name")
    field.fill("0.5")
    submit.click()
    expect(page.get_by_text("'no table/name' does not match").first).to_be_visible()
    assert len(served.runs("classify")) == before
