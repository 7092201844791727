"""The end of a run shows what was passed over, as text and as JSON."""

from pathlib import Path

import pytest

from flows.cli.results import classification_record, print_classification
from infra.provenance import Provenance
from infra.settings import Settings
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.planning.staged_inputs import DoneImages
from infra.storage.tables.records import PredictionSummary
from tasks.classification.passed_over import PassedOver
from tasks.classification.plan import PlannedWork
from tasks.summaries import ClassificationSummary
from tests.unit.tasks.classification.image_inputs import model_version


def summary_of(passed_over: PassedOver, *, batches: int) -> ClassificationSummary:
    work = PlannedWork([], model_version(1), done=DoneImages(3), passed_over=passed_over)
    books = BatchBooks(
        table="mine",
        batch="00000001-0123456789abcdef",
        number=1,
        model_version="1",
        options={},
        shards=1,
        planned=2,
        predicted=2,
        quarantined=0,
        seconds=1.0,
        summary=PredictionSummary(class_counts=[2] + [0] * 9, confidence_sums=[1.0] + [0.0] * 9),
        provenance=Provenance.now(),
    )
    return ClassificationSummary("mine", work, [books] * batches)


@pytest.fixture
def passed_over() -> PassedOver:
    passed_over = PassedOver()
    passed_over.add(".docx", "/images/notes.docx")
    passed_over.add(".heic", "/images/c.HEIC")
    return passed_over


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=str(tmp_path))


@pytest.mark.parametrize("batches", [0, 1], ids=["nothing new", "a batch"])
def test_end_of_a_run_counts_what_was_passed_over(
    passed_over: PassedOver, settings: Settings, batches: int, capsys: pytest.CaptureFixture[str]
) -> None:
    print_classification(summary_of(passed_over, batches=batches), settings)
    assert "2 files passed over: 1 .heic, 1 .docx" in capsys.readouterr().out


@pytest.mark.parametrize("batches", [0, 1], ids=["nothing new", "a batch"])
def test_line_about_a_run_counts_what_was_passed_over(passed_over: PassedOver, batches: int) -> None:
    assert "2 files passed over: 1 .heic, 1 .docx" in summary_of(passed_over, batches=batches).in_words()


@pytest.mark.parametrize("batches", [0, 1], ids=["nothing new", "a batch"])
def test_end_of_a_run_names_a_folder_that_could_not_be_read(
    settings: Settings, batches: int, capsys: pytest.CaptureFixture[str]
) -> None:
    passed_over = PassedOver()
    passed_over.add("unreadable folder", "/images/[red]lost+found\x1b[0m")
    print_classification(summary_of(passed_over, batches=batches), settings)
    printed = capsys.readouterr().out
    assert "1 unreadable folder" in printed
    assert "/images/[red]lost+found\\x1b[0m" in printed


@pytest.mark.parametrize("batches", [0, 1], ids=["nothing new", "a batch"])
def test_json_has_the_counts_by_kind(passed_over: PassedOver, settings: Settings, batches: int) -> None:
    record = classification_record(summary_of(passed_over, batches=batches), settings)
    assert record["passed_over"] == {".docx": 1, ".heic": 1}


@pytest.mark.parametrize("batches", [0, 1], ids=["nothing new", "a batch"])
def test_nothing_passed_over_is_not_mentioned(
    settings: Settings, batches: int, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = summary_of(PassedOver(), batches=batches)
    print_classification(summary, settings)
    assert "passed over" not in capsys.readouterr().out + summary.in_words()
    assert classification_record(summary, settings)["passed_over"] == {}
