"""The markdown report on a training run shows the most important results and any text literally."""

import base64
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fmnist_model.dataset import LabelledImages
from fmnist_model.evaluation.evaluate import calibrate_and_evaluate
from fmnist_model.evaluation.results import TestResult
from fmnist_model.network import NeuralNetwork
from fmnist_model.reports.training_markdown import render_training_markdown
from tests.unit.tasks.training.test_report import RUN, random_data

PAGE = "file:///store/runs/run/report/index.html"


@pytest.fixture(scope="module")
def result() -> TestResult:
    torch.manual_seed(0)
    return calibrate_and_evaluate(NeuralNetwork(), random_data(200, 2), random_data(300, 1), torch.device("cpu"))


@pytest.fixture(scope="module")
def markdown(result: TestResult) -> str:
    return render_training_markdown(RUN, result, PAGE)


def unescaped(markdown: str) -> str:
    """The text without its backslashes."""
    return re.sub(r"\\(.)", r"\1", markdown)


def test_markdown_is_small_enough_for_an_artifact(markdown: str) -> None:
    assert len(markdown) < 300_000


def test_facts_are_those_of_the_run_and_the_result(markdown: str, result: TestResult) -> None:
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", unescaped(markdown), re.MULTILINE))
    assert rows["test accuracy"].startswith(f"**{result.accuracy:.2%}** ({result.correct} of 300")
    before, after = result.uncalibrated.calibration_error, result.evaluation.calibration_error
    assert re.findall(r"[\d.]+%", rows["calibration error"]) == [f"{before:.2%}", f"{after:.2%}"]
    assert f"{result.temperature:.3f}" in rows["calibration error"]
    assert rows["model"] == "fashion-mnist, version 3"
    assert rows["run"] == f"<code>{RUN.run_id}</code>"
    assert rows["full report"] == f"<code>{PAGE}</code>"


def test_curves_reliability_confusion_and_errors_are_pictures(markdown: str) -> None:
    found = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", markdown)
    pictures = [base64.b64decode(data).decode() for data in found]
    assert len(pictures) == 2 + 2 + 1 + 1
    assert all(ElementTree.fromstring(picture).tag.endswith("svg") for picture in pictures)  # noqa: S314 (our own)
    assert all('fill="#ffffff"' in picture and "var(" not in picture for picture in pictures)
    assert pictures[-1].count("<image ") == 15


def test_confusion_has_every_count_except_zeros(markdown: str, result: TestResult) -> None:
    data = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", markdown)[4]
    counts = re.findall(r">(\d+)</text>", base64.b64decode(data).decode())
    assert sorted(map(int, counts)) == sorted(count for row in result.confusion for count in row if count)


def test_any_text_stays_within_its_table_cell(result: TestResult) -> None:
    run = replace(RUN, run_id="a|b`\n<script>", facts={"model": "| <script>alert(1)</script> `x` |"})
    written = render_training_markdown(run, result, PAGE)
    assert "<script>" not in written
    bare = re.sub(r"\\.", "", written)
    assert {line.count("|") for line in bare.splitlines() if line.startswith("|")} == {3}


def test_missing_errors_and_calibration_are_explained(result: TestResult) -> None:
    none = LabelledImages(np.empty((0, 28, 28), np.uint8), np.empty(0, np.int64))
    bare = calibrate_and_evaluate(NeuralNetwork(), none, random_data(50, 1), torch.device("cpu"))
    flawless = replace(bare, evaluation=replace(bare.evaluation, confident_errors=()), error_pictures=())
    written = unescaped(render_training_markdown(RUN, flawless, PAGE))
    assert "not calibrated: no validation images" in written
    assert "None. All test images are classified correctly." in written
