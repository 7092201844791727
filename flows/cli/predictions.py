"""`fmnist predictions`: show prediction tables and export them, without Ray or Prefect."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.printing import Json, new_table, print_json, print_rows, print_table, time_of
from infra.errors import JobStopped, RequestError
from infra.settings import load_settings
from infra.storage.object_store import ObjectStore, open_store

if TYPE_CHECKING:
    from infra.storage.tables.books import BatchBooks
    from infra.storage.tables.planning.batches import NumberedBatch
    from tasks.classification.summarize import ClassMixShift

predictions = App(name="predictions", help="Show prediction tables and their batches, and export predictions.")


@predictions.command(name="list")
def list_predictions(*, as_json: Json = False) -> None:
    """List the committed batches of all prediction tables."""
    from infra.storage.format import UPGRADE_COMMAND, check_format, old_tables
    from infra.storage.tables.books import list_tables, read_books

    store = _store()
    check_format(store)
    old = set(old_tables(store))
    batches = [books for table in list_tables(store) if table not in old for books in read_books(store, table)]
    if old:
        Console(stderr=True).print(
            f"Not shown, because an older version wrote them: {', '.join(sorted(old))}. Run `{UPGRADE_COMMAND}`.",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    if as_json:
        print_json([_record(books) for books in batches])
        return
    rows = new_table("table", "batch", "model", "predicted", "quarantined", "committed")
    for books in batches:
        counts = (f"{books.predicted:,}", f"{books.quarantined:,}")
        rows.add_row(books.table, books.batch, books.model_version, *counts, time_of(books.provenance.created_at))
    print_rows(rows, f"No committed batches in {store.root} yet. Make one with `fmnist classify`.")


@predictions.command(name="show")
def show_predictions(
    table: str, *, sql: Annotated[bool, Parameter(name="--sql")] = False, as_json: Json = False
) -> None:
    """Show a table's batches, and the classes, confidence and accuracy of the newest model's predictions.

    Of each image, the newest prediction of a model version counts.

    Parameters
    ----------
    table
        Name of the prediction table.
    sql
        Print the DuckDB query of the newest predictions instead.
    """
    from infra.storage.format import check_table
    from infra.storage.tables.books import read_books
    from tasks.classification.summarize import class_mix_shift, count_newest, describe

    store = _store()
    check_table(store, table)
    if sql:
        _print_sql(store, table, _committed(store, table), as_json=as_json)
        return
    batches = read_books(store, table)
    unfinished = _unfinished(store, table, batches)
    if not batches and not unfinished:
        raise _no_batches(store, table)
    counts = count_newest(store, table, batches)
    models = {
        version: describe(count.predictions)
        | {"quarantined": count.quarantined, "reasons": [reason.model_dump() for reason in count.reasons]}
        for version, count in counts.items()
    }
    shift = class_mix_shift(batches)
    if as_json:
        record = {
            "table": table,
            "batches": [_record(books) for books in batches],
            "unfinished": None if unfinished is None else [entry.model_dump(mode="json") for entry in unfinished],
            "models": models,
            "class_mix_shift": asdict(shift) | {"verdict": shift.verdict} if shift else None,
        }
        print_json(record)
        return
    _print_batches(batches, unfinished or [])
    if batches:
        _print_models(models, batches[-1].model_version, shift)


@predictions.command
def export(
    table: str,
    *,
    to: Path,
    model: str | None = None,
    as_json: Json = False,
) -> None:
    """Write the newest predictions of a table to one Parquet or CSV file, in no particular order.

    The file is complete or doesn't change. In CSV, the probabilities are in columns named by the class's number:
    probability_0, probability_1, …

    Parameters
    ----------
    table
        Name of the prediction table.
    to
        File to write. Its ending, .parquet or .csv, chooses the format.
    model
        Version of the model whose predictions to write. By default, all versions.
    """
    from tasks.classification.export import check_target, export_newest

    check_target(to)
    store = _store()
    batches = _committed(store, table)
    rows = export_newest(store, table, batches, to, model)
    if as_json:
        print_json({"table": table, "file": str(to), "rows": rows, "model_version": model})
    else:
        noun = "prediction" if rows == 1 else "predictions"
        Console().print(f"{rows:,} {noun} written to {to}.", highlight=False, soft_wrap=True, markup=False)


def _unfinished(store: ObjectStore, table: str, batches: "Sequence[BatchBooks]") -> "list[NumberedBatch] | None":
    """Return the unfinished batches, or None if the table has been copied without its plans."""
    from infra.storage.tables.planning.batches import unfinished_batches

    try:
        return unfinished_batches(store, table)
    except JobStopped:
        if not batches:
            raise
        return None


def _committed(store: ObjectStore, table: str) -> "list[BatchBooks]":
    from infra.storage.format import check_table
    from infra.storage.tables.books import read_books

    check_table(store, table)
    batches = read_books(store, table)
    if not batches:
        raise _no_batches(store, table)
    return batches


def _no_batches(store: ObjectStore, table: str) -> RequestError:
    from infra.storage.tables.books import list_tables

    known = ", ".join(list_tables(store)) or "none"
    return RequestError(f"{store.root} has no table {table!r} with a committed batch. Tables: {known}.")


def _print_sql(store: ObjectStore, table: str, batches: "Sequence[BatchBooks]", *, as_json: bool) -> None:
    from infra.storage.tables.delta_scan import newest_script

    script = newest_script(store, table, batches)
    if as_json:
        print_json({"table": table, "sql": script})
    else:
        Console().print(script, highlight=False, markup=False, soft_wrap=True)


def _print_batches(batches: "Sequence[BatchBooks]", unfinished: "Sequence[NumberedBatch]") -> None:
    rows = new_table("batch", "model", "planned", "predicted", "quarantined", "committed")
    for books in batches:
        counts = [f"{count:,}" for count in (books.planned, books.predicted, books.quarantined)]
        rows.add_row(books.batch, books.model_version, *counts, time_of(books.provenance.created_at))
    for entry in unfinished:
        rows.add_row(entry.batch, entry.model_version, "", "", "", "[yellow]not yet[/yellow]")
    print_table(rows)
    if unfinished:
        noun = "batch is" if len(unfinished) == 1 else "batches are"
        versions = ", ".join(dict.fromkeys(entry.model_version for entry in unfinished))
        Console().print(
            f"{len(unfinished)} {noun} unfinished. The next `fmnist classify` into this table with model version "
            f"{versions} completes them, unless a run is doing so now.",
            highlight=False,
            soft_wrap=True,
        )


def _print_models(models: dict[str, Any], newest: str, shift: "ClassMixShift | None") -> None:
    console = Console()
    _print_summary(console, newest, models[newest])
    if shift:
        style = {"moved much": "bold red", "moved some": "yellow"}.get(shift.verdict, "green")
        console.print(
            f"Class mix compared with the previous batch: [{style}]{shift.verdict}[/{style}], population stability "
            f"index {shift.index:.3f} (some from 0.1, much from 0.25)",
            highlight=False,
            soft_wrap=True,
        )
    if len(models) > 1:
        others = ", ".join(version for version in models if version != newest)
        console.print(f"For model versions {others}, see --json.", highlight=False, soft_wrap=True)


def _print_summary(console: Console, version: str, summary: dict[str, Any]) -> None:
    if summary["images"]:
        table = new_table("class", "images", "share", "mean confidence")
        for name, row in summary["classes"].items():
            share = row["images"] / summary["images"]
            table.add_row(name, f"{row['images']:,}", f"{share:.1%}", f"{row['mean_confidence']:.3f}")
        labelled = summary["labelled"]
        accuracy = f", accuracy {summary['accuracy']:.2%} of {labelled:,} labelled" if labelled else ""
        confidence = f"mean confidence {summary['mean_confidence']:.3f}"
        console.print(
            f"Model version {version}: {summary['images']:,} images, {confidence}{accuracy}",
            highlight=False,
            soft_wrap=True,
        )
        print_table(table)
    else:
        console.print(f"Model version {version}: no images were classified.", highlight=False)
    if summary["confusion"]:
        _print_confusion(summary["confusion"])
    if summary["quarantined"]:
        _print_quarantine(console, summary)


def _print_quarantine(console: Console, summary: dict[str, Any]) -> None:
    console.print(f"In quarantine: {summary['quarantined']:,} images", highlight=False)
    table = new_table("images", "reason")
    for reason in summary["reasons"]:
        table.add_row(f"{reason['images']:,}", Text(reason["reason"]))  # it may contain brackets
    print_table(table)


def _print_confusion(confusion: list[list[int]]) -> None:
    from fmnist_model.classes import CLASS_NAMES

    table = Table(
        title="Confusion matrix: true classes in rows, predicted classes in columns",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("", style="cyan", no_wrap=True)
    for number in range(len(CLASS_NAMES)):
        table.add_column(str(number), justify="right")
    for number, row in enumerate(confusion):
        cells = [f"[bold]{count}[/bold]" if column == number else str(count or "·") for column, count in enumerate(row)]
        table.add_row(f"{number} {CLASS_NAMES[number]}", *cells)
    print_table(table)


def _record(books: "BatchBooks") -> dict[str, Any]:
    record: dict[str, Any] = books.model_dump(mode="json", exclude={"summary", "reasons"})
    return record | {"images_per_second": round(books.images_per_second)}


def _store() -> ObjectStore:
    return open_store(load_settings().store)
