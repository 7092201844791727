"""Print the results of finished jobs, as tables and as JSON."""

from typing import Any

from rich.console import Console
from rich.markup import escape

from fmnist_model.evaluation.results import TestResult
from infra.settings import Settings
from infra.storage.keys import checkpoint_folder, quarantine_folder, run_report_key, table_folder
from infra.storage.object_store import open_store
from infra.storage.tables.delta_scan import create_secret, delta_scan
from infra.storage.tables.newest import sql_text
from tasks.classification.passed_over import PassedOver
from tasks.summaries import ClassificationSummary, MainJobSummary, TrainingSummary

_STAGES = {
    "start": "starting Ray and Prefect",
    "import dataset": "importing the dataset",
    "start workers": "starting the training workers",
    "train": "training",
    "evaluate": "evaluating and registering",
    "start classifiers": "starting the classifier",
    "classify": "classifying and committing",
}


def training_record(summary: TrainingSummary, settings: Settings) -> dict[str, Any]:
    """Return the results of a training run as JSON values."""
    store = open_store(settings.store)
    version = summary.registration.version
    return {
        "run_id": summary.run.run_id,
        "model_version": version.version,
        "champion": summary.registration.champion,
        "epochs": summary.run.epoch,
        "workers": summary.run.workers,
        "device": summary.run.device,
        "test_accuracy": summary.result.accuracy,
        "test_correct": summary.result.correct,
        "test_images": summary.result.images,
        "test_log_loss": summary.result.evaluation.log_loss,
        "calibration_error": summary.result.evaluation.calibration_error,
        "temperature": summary.result.temperature,
        "seconds": round(summary.run.seconds, 3),
        "images_per_second": round(summary.run.images_per_second),
        "checkpoint": store.uri(checkpoint_folder(summary.run.run_id, summary.run.epoch)),
        "report": store.uri(run_report_key(summary.run.run_id)),
    }


def classification_record(summary: ClassificationSummary, settings: Settings) -> dict[str, Any]:
    """Return the results of a classification run as JSON values.

    If the run finished an older batch too, the numbers are sums over both.
    """
    store, batches = open_store(settings.store), summary.batches
    handled = sum(books.predicted + books.quarantined for books in batches)
    seconds = sum(books.seconds for books in batches)
    return {
        "table": summary.table,
        "batch": batches[-1].batch if batches else None,
        "batches": [books.batch for books in batches],
        "planned": sum(books.planned for books in batches),
        "predicted": sum(books.predicted for books in batches),
        "quarantined": sum(books.quarantined for books in batches),
        "already_done": summary.work.done.images,
        "already_predicted": summary.work.done.images - summary.work.done.quarantined,
        "already_quarantined": summary.work.done.quarantined,
        "passed_over": summary.work.passed_over.to_record(),
        "seconds": round(seconds, 3),
        "images_per_second": round(handled / seconds) if seconds else 0,
        "model_version": str(summary.work.model.version),
        "predictions": store.uri(table_folder(summary.table)),
        "quarantine": store.uri(quarantine_folder(summary.table)),
        "reports": summary.reports,
    }


def main_job_record(summary: MainJobSummary, settings: Settings) -> dict[str, Any]:
    """Return the results of the main job as JSON values."""
    return {
        "training": training_record(summary.training, settings),
        "classification": classification_record(summary.classification, settings),
        "checked_images": summary.checked.images,
        "checked_correct": summary.checked.correct,
    }


def print_training(summary: TrainingSummary, settings: Settings) -> None:
    """Print the results of a training run."""
    console = Console()
    _print_rows(console, "Training", _training_rows(summary, settings))
    console.print("Next steps:", highlight=False)
    _print_commands(console, ["fmnist describe", f"fmnist models show {summary.registration.version.version}"])


def print_classification(summary: ClassificationSummary, settings: Settings) -> None:
    """Print the results of a classification run."""
    console = Console()
    if not summary.batches:
        console.print(
            summary.in_words(),
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        for fault in _faults(summary.work.passed_over):
            console.print(f"  {fault}", highlight=False, soft_wrap=True, markup=False)
        return
    _print_rows(console, "Classification", _classification_rows(summary, settings))
    console.print("Query the predictions in DuckDB:", highlight=False)
    _print_commands(console, [duckdb_query(summary, settings)])
    console.print("Next steps:", highlight=False)
    _print_commands(console, [f"fmnist predictions show {summary.table}"])


def print_main_job(summary: MainJobSummary, settings: Settings, timeline: dict[str, float]) -> None:
    """Print the results of the main job."""
    console = Console()
    _print_rows(console, "Training", _training_rows(summary.training, settings))
    _print_rows(console, "Classification", _classification_rows(summary.classification, settings))
    trained, checked = summary.training.result, summary.checked
    agree = trained.correct == checked.correct and trained.images == checked.images
    verdict = "both are the same" if agree else "[bold red]they differ, which is a bug[/bold red]"
    _print_rows(
        console,
        "Test accuracy, computed twice",
        [
            ("after training", f"{trained.accuracy:.2%} ({trained.correct:,} of {trained.images:,})"),
            ("from the predictions", f"{checked.accuracy:.2%} ({checked.correct:,} of {checked.images:,})"),
            ("", verdict),
        ],
    )
    stages = [f"{_STAGES[name]} {timeline[name]:.0f} s" for name in _STAGES if name in timeline]
    _print_rows(console, "Time by stage", [("", ", ".join(stages))])
    console.print("Query the predictions in DuckDB:", highlight=False)
    _print_commands(console, [duckdb_query(summary.classification, settings)])
    console.print("Next steps:", highlight=False)
    _print_commands(
        console,
        [
            "fmnist describe 0 1 2 --plot pictures.png",
            f"fmnist predictions show {summary.classification.table}",
            "fmnist classify YOUR_FOLDER --table mine",
        ],
    )


def duckdb_query(summary: ClassificationSummary, settings: Settings) -> str:
    """Return a DuckDB query of the predictions of this run. It needs DuckDB's Delta extension."""
    store = open_store(settings.store)
    batches = ", ".join(sql_text(books.batch) for books in summary.batches)
    secret = create_secret(store)
    return "\n".join(
        [
            *([secret] if secret else []),
            "SELECT predicted_label, count(*) AS images, avg(confidence) AS confidence",
            f"FROM {delta_scan(store, table_folder(summary.table))} WHERE batch IN ({batches})",
            "GROUP BY ALL ORDER BY ALL;",
        ]
    )


def _training_rows(summary: TrainingSummary, settings: Settings) -> list[tuple[str, str]]:
    record = training_record(summary, settings)
    worst = sorted(summary.result.evaluation.recall.items(), key=lambda item: item[1])[:2]
    return [
        ("dataset", f"{summary.dataset.name} from {summary.dataset.source}"),
        ("workers", f"{record['workers']} on {record['device']}"),
        ("test accuracy", f"{record['test_accuracy']:.2%} after {record['epochs']} epochs"),
        ("hardest classes", ", ".join(f"{name} ({recall:.0%} found)" for name, recall in worst)),
        ("calibration error", _calibration(summary.result)),
        ("speed", f"{record['images_per_second']:,} images/s, {record['seconds']:.1f} s in the training loop"),
        ("checkpoint", record["checkpoint"]),
        ("report", record["report"]),
        ("model", f"version {record['model_version']}, {summary.registration.standing}"),
        *(("warning", warning) for warning in summary.run.warnings),
    ]


def _calibration(result: TestResult) -> str:
    if not result.validation_images:
        return f"{result.uncalibrated.calibration_error:.2%}, not calibrated: no validation images"
    before, after = result.uncalibrated.calibration_error, result.evaluation.calibration_error
    return f"{before:.2%} -> {after:.2%} at temperature {result.temperature:.3f}"


def _classification_rows(summary: ClassificationSummary, settings: Settings) -> list[tuple[str, str]]:
    record = classification_record(summary, settings)
    already = f", {record['already_done']:,} already in the table" if record["already_done"] else ""
    if record["already_quarantined"]:
        already += f" ({record['already_quarantined']:,} of them in quarantine)"
    return [
        ("model", f"version {record['model_version']}"),
        ("images", f"{record['predicted']:,} predicted, {record['quarantined']:,} quarantined{already}"),
        (
            "speed",
            f"{record['images_per_second']:,} images/s, {record['seconds']:.1f} s since the first worker started",
        ),
        *_passed_over_rows(summary.work.passed_over),
        ("table", record["predictions"]),
        *(("report", report) for report in summary.reports),
    ]


def _passed_over_rows(passed_over: PassedOver) -> list[tuple[str, str]]:
    text = passed_over.text()
    return [("inputs", text), *(("", escape(fault)) for fault in _faults(passed_over))] if text else []


def _faults(passed_over: PassedOver) -> list[str]:
    """Name an example of each kind that may be a mistake."""
    return [f"{found.kind}: {found.examples[0]}" for found in passed_over.faults()]


def _print_rows(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    """Print names and values without wrapping lines, so that you can copy long values."""
    console.print(title, style="bold", highlight=False, soft_wrap=True)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        gap = "  " if width else ""
        console.print(f"  [cyan]{name:<{width}}[/cyan]{gap}{value}", highlight=False, soft_wrap=True)
    console.print()


def _print_commands(console: Console, commands: list[str]) -> None:
    for command in commands:
        indented = "\n".join(f"  {line}" for line in command.splitlines())
        console.print(indented, style="green", highlight=False, markup=False, soft_wrap=True)
    console.print()
