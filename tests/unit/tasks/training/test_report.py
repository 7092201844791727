"""The report of a training run is one accessible page with all results, and handles any text."""

import base64
import io
import math
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from flows.cli.results import print_training, training_record
from fmnist_model.classes import CLASS_NAMES
from fmnist_model.dataset import LabelledImages
from fmnist_model.evaluation.evaluate import calibrate_and_evaluate
from fmnist_model.evaluation.results import Reliability, TestResult
from fmnist_model.network import NeuralNetwork, save_weights
from fmnist_model.reports.charts import draw_curves, draw_reliability
from fmnist_model.reports.training_page import ReportedRun, render_training_page
from infra.provenance import Provenance
from infra.settings import load_settings
from infra.storage.checkpoints import write_checkpoint
from infra.storage.datasets import DatasetRecord
from infra.storage.object_store import ObjectStore, open_store
from tasks.summaries import TrainingSummary
from tasks.training.register import register_model
from tasks.training.report import write_report
from tasks.training.run import TrainedRun

METRICS: dict[str, list[Any]] = {
    "epoch": [1, 2, 3],
    "loss": [0.9, 0.5, 0.4321],
    "accuracy": [0.7, 0.8, 0.85],
    "seconds": [4.0, 3.0, 3.0],
    "learning_rate": [0.01, 0.005, 1e-8],
    "validation_loss": [0.6, 0.55, 0.5432],
    "validation_accuracy": [0.75, 0.78, 0.8],
}
RUN = ReportedRun(
    run_id="2026-11-23T05-30-31-ab4d",
    facts={"model": "fashion-mnist, version 3", "data": "fashion-mnist@0123", "code": "0.1.0+abc"},
    recipe={"epochs": 3, "learning_rate": 0.04, "flip": True},
    metrics=METRICS,
)


def random_data(n: int, seed: int) -> LabelledImages:
    generator = np.random.default_rng(seed)
    return LabelledImages(generator.integers(0, 256, (n, 28, 28), dtype=np.uint8), generator.integers(0, 10, n))


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    return random_data(300, 1)


@pytest.fixture(scope="module")
def network() -> NeuralNetwork:
    torch.manual_seed(0)
    network = NeuralNetwork()
    with torch.no_grad():
        network.linear_relu_stack[4].weight.mul_(50)
    return network


@pytest.fixture(scope="module")
def result(network: NeuralNetwork, images: LabelledImages) -> TestResult:
    return calibrate_and_evaluate(network, random_data(200, 2), images, torch.device("cpu"))


@pytest.fixture(scope="module")
def page(result: TestResult) -> str:
    return render_training_page(RUN, result)


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    """Text of the element and of all elements in it."""


class Page(HTMLParser):
    """Parse a page into its elements, and check that all are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = attributes.items()
        return [element for element in self.elements if element.tag == tag and wanted <= element.attributes.items()]

    def texts(self, tag: str) -> list[str]:
        return [" ".join(element.text.split()) for element in self.all(tag)]

    def rows(self, caption: str) -> list[list[str]]:
        """Texts of the cells of a table by row, starting with the head."""
        [table] = [element for element in self.all("table") if element.text.strip().startswith(caption)]
        start = self.elements.index(table) + 1
        end = next((n for n in range(start, len(self.elements)) if self.elements[n].tag == "table"), None)
        rows: list[list[str]] = []
        for element in self.elements[start:end]:
            if element.tag == "tr":
                rows.append([])
            elif element.tag in {"td", "th"}:
                rows[-1].append(element.text.strip())
        return rows


@pytest.fixture(scope="module")
def parsed(page: str) -> Page:
    return Page(page)


# Accessibility


def test_page_is_self_contained(parsed: Page, page: str):
    targets = [element.attributes.get(name) for element in parsed.elements for name in ("src", "href", "xlink:href")]
    assert {target[:5] for target in targets if target and not target.startswith("#")} == {"data:"}
    assert re.findall(r"url\((?!#)|@import", page) == []
    assert parsed.all("script") + parsed.all("link") == []


def test_title_and_heading_name_the_run(parsed: Page):
    assert parsed.elements[0].attributes == {"lang": "en"}
    assert parsed.texts("title")[0] == parsed.texts("h1")[0]
    assert RUN.run_id in parsed.texts("h1")[0]


def test_every_picture_has_a_text_alternative(parsed: Page):
    pictures = [element.attributes.get("alt") for element in parsed.all("img")]
    pictures += [element.attributes.get("aria-label") for element in parsed.all("div", role="img")]
    assert len(pictures) == 24 + 4
    assert all(pictures)
    assert len(parsed.all("svg")) == len(parsed.all("div", role="img"))


def test_tables_have_captions_and_headers_have_a_scope(parsed: Page):
    assert len(parsed.all("caption")) == len(parsed.all("table")) == 7
    assert {element.attributes.get("scope") for element in parsed.all("th")} == {"row", "col"}


def test_ids_are_unique(parsed: Page):
    ids = [element.attributes["id"] for element in parsed.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids)) > 0


def test_page_is_deterministic(page: str, result: TestResult):
    assert render_training_page(RUN, result) == page


@pytest.mark.parametrize(
    "hostile", ["</title><script>alert(1)</script>", '" onload="alert(1)', "{{ 7 * 7 }}", "$x_^$ &amp;"]
)
def test_any_text_appears_unchanged(hostile: str, result: TestResult):
    run = ReportedRun(
        run_id=hostile, facts={hostile: hostile}, recipe={hostile: hostile}, metrics=METRICS | {hostile: [1, 2, 3]}
    )
    found = Page(render_training_page(run, result))
    assert hostile in found.texts("h1")[0]
    assert [hostile, hostile] in found.rows("Provenance")
    assert found.all("script") == []
    assert not any("onload" in element.attributes for element in found.elements)


# Contents


def test_headline_has_the_results_on_the_test_images(parsed: Page, result: TestResult):
    before, after = result.uncalibrated, result.evaluation
    expected = [
        f"{after.accuracy:.2%}",
        f"{after.correct} of 300 ",
        f"{after.log_loss:.4g} nats",
        f"{before.log_loss:.4g} ",
        f"{after.calibration_error:.2%}",
        f"{before.calibration_error:.2%} ",
        f"{result.temperature:.4g}",
        " 200 ",
    ]
    assert all(value in text for value, text in zip(expected, parsed.texts("dd"), strict=True))


def test_curves_show_training_and_validation(parsed: Page):
    loss, accuracy = (element.text for element in parsed.all("svg")[:2])
    assert ("Loss" in loss, "Accuracy" in accuracy) == (True, True)
    assert all(name in picture for name in ("training", "validation") for picture in (loss, accuracy))
    label = str(parsed.all("div", role="img")[0].attributes["aria-label"])
    assert all(value in label for value in ("0.4321", "0.5432"))


def test_metrics_of_all_epochs_are_in_a_table(parsed: Page):
    rows = parsed.rows("Metrics by epoch")
    assert rows[0] == [name.replace("_", " ") for name in METRICS]
    assert rows[3] == ["3", "0.4321", "0.85", "3", "1e-08", "0.5432", "0.8"]


@pytest.mark.parametrize(
    "metrics",
    [
        {name: METRICS[name] for name in ("epoch", "loss", "accuracy")},
        {"epoch": [1], "loss": [math.inf], "accuracy": [0.1]},
        METRICS | {"validation_loss": [None, 0.5, math.nan], "validation_accuracy": [None, None, None]},
    ],
    ids=["older", "one epoch", "gaps"],
)
def test_metrics_can_be_incomplete(metrics: dict[str, list[Any]], result: TestResult):
    found = Page(render_training_page(replace(RUN, metrics=metrics), result))
    assert len(found.rows("Metrics by epoch")) == len(metrics["epoch"]) + 1
    assert ("validation" in found.all("svg")[0].text) == ("validation_loss" in metrics)


def test_confusion_matrix_has_every_count(parsed: Page, result: TestResult):
    head, *rows = parsed.rows("Rows are true classes")
    assert head[1:] == [row[0] for row in rows] == list(CLASS_NAMES)
    assert [[int(count) for count in row[1:]] for row in rows] == result.confusion


def test_each_class_has_precision_and_recall(parsed: Page, result: TestResult):
    _, *rows = parsed.rows("Precision and recall")
    precision, recall = result.evaluation.precision, result.evaluation.recall
    counts = np.sum(result.confusion, axis=1)
    assert rows == [
        [name, str(count), "-" if math.isnan(precision[name]) else f"{precision[name]:.2%}", f"{recall[name]:.2%}"]
        for name, count in zip(CLASS_NAMES, counts, strict=True)
    ]


def test_reliability_bins_are_in_a_table(parsed: Page, result: TestResult):
    for caption, evaluation in (("Before", result.uncalibrated), ("After", result.evaluation)):
        _, *rows = parsed.rows(caption)
        assert [int(row[1]) for row in rows] == [count for count in evaluation.reliability.counts if count]


def test_confident_errors_are_shown_with_both_classes(parsed: Page, result: TestResult, images: LabelledImages):
    items = parsed.texts("li")
    assert len(items) == 24
    for element, text, error in zip(parsed.all("img"), items, result.evaluation.confident_errors, strict=True):
        classes_and_number = (CLASS_NAMES[error.predicted], CLASS_NAMES[error.label], str(error.index))
        assert all(words in text for words in (*classes_and_number, f"{error.confidence:.2%}"))
        assert all(words in str(element.attributes["alt"]) for words in classes_and_number)
        png = base64.b64decode(str(element.attributes["src"]).removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), images.images[error.index])


def test_recipe_and_facts_are_shown(parsed: Page):
    assert parsed.rows("Recipe") == [["epochs", "3"], ["learning rate", "0.04"], ["flip", "True"]]
    assert parsed.rows("Provenance") == [[name, value] for name, value in RUN.facts.items()]


def test_page_of_an_uncalibrated_model_compares_nothing(network: NeuralNetwork, images: LabelledImages):
    none = LabelledImages(np.empty((0, 28, 28), np.uint8), np.empty(0, np.int64))
    uncalibrated = calibrate_and_evaluate(network, none, images, torch.device("cpu"))
    found = Page(render_training_page(RUN, uncalibrated))
    assert len(found.all("svg")) == 3
    assert not any("before" in text for text in found.texts("dd"))


def test_page_of_a_flawless_model_shows_no_errors(result: TestResult):
    flawless = replace(result, evaluation=replace(result.evaluation, confident_errors=()), error_pictures=())
    assert Page(render_training_page(RUN, flawless)).all("img") == []


# Pictures


def points(svg: bytes, color: str) -> list[list[tuple[float, ...]]]:
    """Points of the only line in a colour, one list per unbroken stretch."""
    [path] = re.findall(rf'<path d="([^"]+)" clip-path="[^>]*stroke: var\(--{color}', svg.decode())
    return [[tuple(map(float, point.split())) for point in piece.split("L")] for piece in path.split("M")[1:]]


def test_curve_passes_through_its_values():
    [stretch] = points(draw_curves([1, 2, 4], {"training": [0.9, 0.5, 0.3]}, "Loss"), "second")
    x, y = zip(*stretch, strict=True)
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(3)
    assert (y[2] - y[0]) / (y[1] - y[0]) == pytest.approx(1.5)
    assert y[0] < y[2], "the largest value is at the top"


def test_curve_has_a_gap_at_a_missing_value():
    svg = draw_curves([1, 2, 3, 4, 5], {"training": [1.0, 0.9, None, 0.7, 0.6]}, "Loss")
    assert [len(stretch) for stretch in points(svg, "second")] == [2, 2]


def test_ticks_of_epochs_are_whole_numbers():
    svg = draw_curves([1], {"training": [0.5]}, "Loss").decode()
    assert re.findall(r">(\d+)</text>", svg) == ["1"]


def test_reliability_diagram_has_a_dot_for_each_bin():
    counts, shares = np.zeros(15, np.int64), np.full(15, np.nan)
    confidence, accuracy = shares.copy(), shares.copy()
    counts[[1, 7, 13]] = 5
    confidence[[1, 7, 13]], accuracy[[1, 7, 13]] = (0.1, 0.5, 0.9), (0.0, 0.8, 0.4)
    svg = draw_reliability(Reliability(counts, confidence, accuracy), "Before").decode()
    dots = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--winner', svg)
    (x0, y0), (x1, y1), (x2, y2) = sorted((float(x), float(y)) for x, y in dots[:3])
    assert (x2 - x0) / (x1 - x0) == pytest.approx(2)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "svg",
    [
        draw_curves([1, 2], {"training": [2.0, 1.0], "validation": [3.0, 2.0]}, "Loss"),
        draw_reliability(Reliability(np.ones(15, np.int64), np.full(15, 0.5), np.full(15, 0.5)), "Before"),
    ],
    ids=["curves", "reliability"],
)
def test_page_can_set_the_colours_of_a_picture(svg: bytes):
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 (our own file)
    colors = re.findall(r"(var\(--\w+, )?#[0-9a-f]{6}\b", svg.decode())
    assert colors
    assert all(colors), "every colour is the default of a variable"
    assert b"DOCTYPE" not in svg


# In the store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("FMNIST_STORE", str(tmp_path / "store"))
    return open_store(f"file://{tmp_path}/store")


def trained(store: ObjectStore, network: NeuralNetwork) -> TrainedRun:
    """A finished run of three epochs with its metrics."""
    write_checkpoint(
        store,
        run_id="run",
        epoch=3,
        files={"model.safetensors": save_weights(network)},
        metrics={},
        parameters={"epochs": 3},
        data_version="tests@1",
    )
    with store.publish("runs/run/metrics.parquet") as stream:
        pq.write_table(pa.table(METRICS), stream)
    return TrainedRun(
        run_id="run",
        epoch=3,
        workers=2,
        device="cpu",
        loss=0.4,
        accuracy=0.9,
        validation_accuracy=0.8,
        images_per_second=1.0,
        seconds=1.0,
        warnings=[],
    )


def test_registered_version_has_temperature_and_metrics(store: ObjectStore, network: NeuralNetwork, result: TestResult):
    version = register_model.fn(trained(store, network), result).version
    assert version.temperature == result.temperature
    assert version.metrics == {
        "test_accuracy": result.accuracy,
        "test_correct": result.correct,
        "test_log_loss": result.evaluation.log_loss,
        "test_calibration_error": result.evaluation.calibration_error,
    }


def test_report_is_in_the_folder_of_the_run_and_names_the_version(
    store: ObjectStore, network: NeuralNetwork, result: TestResult
):
    run = trained(store, network)
    uri = write_report.fn(run, result, register_model.fn(run, result))
    assert uri == f"{store.root}/runs/run/report/index.html"
    found = Page(store.read("runs/run/report/index.html").decode())
    facts = dict(found.rows("Provenance"))
    assert all(words in facts["model"] for words in ("fashion-mnist", "version 1", "champion"))
    assert facts["data"] == "tests@1"
    assert found.rows("Recipe") == [["epochs", "3"]]
    assert len(found.rows("Metrics by epoch")) == 4


def test_report_is_overwritten_when_the_run_is_resumed(store: ObjectStore, network: NeuralNetwork, result: TestResult):
    run = trained(store, network)
    store.create("runs/run/report/index.html", b"an earlier report")
    write_report.fn(run, result, register_model.fn(run, result))
    assert Page(store.read("runs/run/report/index.html").decode()).texts("h1")


# Output of the command line


@pytest.fixture
def summary(store: ObjectStore, network: NeuralNetwork, result: TestResult) -> TrainingSummary:
    dataset = DatasetRecord(name="tests", version="1", source="here", splits={}, provenance=Provenance.now())
    run = trained(store, network)
    return TrainingSummary(dataset=dataset, run=run, result=result, registration=register_model.fn(run, result))


def test_json_contains_calibration_and_report(store: ObjectStore, summary: TrainingSummary, result: TestResult):
    figures = training_record(summary, load_settings())
    assert figures["calibration_error"] == result.evaluation.calibration_error
    assert figures["temperature"] == result.temperature
    assert figures["report"] == f"{store.root}/runs/run/report/index.html"


def printed(summary: TrainingSummary, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Printed lines, with runs of spaces replaced by one."""
    print_training(summary, load_settings())
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_calibration_error_is_printed_before_and_after(
    summary: TrainingSummary, result: TestResult, capsys: pytest.CaptureFixture[str]
):
    before, after = result.uncalibrated.calibration_error, result.evaluation.calibration_error
    [line] = [line for line in printed(summary, capsys) if line.startswith("calibration error")]
    assert all(value in line for value in (f"{before:.2%}", f"{after:.2%}", f"{result.temperature:.3f}"))


def test_uri_of_the_report_is_printed(store: ObjectStore, summary: TrainingSummary, capsys: pytest.CaptureFixture[str]):
    assert f"report {store.root}/runs/run/report/index.html" in printed(summary, capsys)


def test_only_one_calibration_error_is_printed_for_an_uncalibrated_model(
    summary: TrainingSummary, capsys: pytest.CaptureFixture[str]
):
    uncalibrated = replace(summary.result, evaluation=summary.result.uncalibrated, temperature=1.0, validation_images=0)
    lines = printed(replace(summary, result=uncalibrated), capsys)
    [line] = [line for line in lines if line.startswith("calibration error")]
    assert re.findall(r"[\d.]+%", line) == [f"{uncalibrated.uncalibrated.calibration_error:.2%}"]
