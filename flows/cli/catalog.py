"""`fmnist models`, `fmnist predictions` and `fmnist dataset`: show what the store holds, without Ray or Prefect."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from cyclopts import App
from rich import box
from rich.console import Console
from rich.table import Table

from flows.cli.printing import Json, print_json, print_table
from infra.settings import load_settings
from infra.storage.object_store import ObjectStore, open_store

_NUMERIC = frozenset({"version", "test accuracy", "planned", "predicted", "quarantined", "images", "share"})

models = App(name="models", help="Show model versions, and choose the champion.")
predictions = App(name="predictions", help="Show prediction tables and their committed batches.")
dataset = App(name="dataset", help="Import Fashion-MNIST into the store, and show it.")


@models.command(name="list")
def list_models(*, as_json: Json = False) -> None:
    """List all versions, newest first."""
    from infra.storage.model_registry import ALIASES, ModelRegistry

    registry = ModelRegistry(_store())
    aliases = {alias: record.version for alias in ALIASES if (record := registry.alias(alias))}
    versions = [registry.version(number) for number in reversed(registry.versions())]
    if as_json:
        print_json({"versions": [version.model_dump(mode="json") for version in versions], "aliases": aliases})
        return
    table = _table("version", "alias", "test accuracy", "run", "created", "by")
    for version in versions:
        names = " ".join(alias for alias, number in aliases.items() if number == version.version)
        stamp = version.provenance
        accuracy = f"{version.metrics['test_accuracy']:.2%}"
        table.add_row(str(version.version), names, accuracy, version.run_id, _when(stamp.created_at), stamp.created_by)
    _print(table, f"No versions in {_store().root} yet. Train one with `fmnist train`.")


@models.command(name="show")
def show_model(model: str = "champion", *, as_json: Json = False) -> None:
    """Show everything that is recorded about a version.

    Parameters
    ----------
    model
        Version number, champion or candidate.
    """
    from infra.storage.keys import checkpoint_folder
    from infra.storage.model_registry import ModelRegistry

    store = _store()
    version = ModelRegistry(store).resolve(model)
    record = version.model_dump(mode="json") | {
        "checkpoint": store.uri(checkpoint_folder(version.run_id, version.epoch))
    }
    if as_json:
        print_json(record)
    else:
        _print_record(f"Model {version.name}, version {version.version}", record)


@models.command
def promote(version: int, *, force: bool = False, as_json: Json = False) -> None:
    """Make a version the champion.

    Parameters
    ----------
    version
        Version number.
    force
        Promote the version even if it does worse than the champion on the same test images.
    """
    from tasks.training.register import promote_version

    record = promote_version(_store(), version, force=force)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        before = (
            "No version was champion before" if record.previous is None else f"Before, it was version {record.previous}"
        )
        Console().print(f"Version {record.version} is champion. {before}.", highlight=False)


@predictions.command(name="list")
def list_predictions(*, as_json: Json = False) -> None:
    """List the committed batches of all prediction tables."""
    from infra.storage.tables.books import list_tables, read_books

    store = _store()
    batches = [books for table in list_tables(store) for books in read_books(store, table)]
    if as_json:
        print_json([_books(manifest) for manifest in batches])
        return
    table = _table("table", "batch", "model", "predicted", "quarantined", "committed")
    for manifest in batches:
        cells = [f"{count:,}" for count in (manifest.predicted, manifest.quarantined)]
        when = _when(manifest.provenance.created_at)
        table.add_row(manifest.table, manifest.batch, manifest.model_version, *cells, when)
    _print(table, f"No committed batches in {store.root} yet. Make one with `fmnist classify`.")


@predictions.command(name="show")
def show_predictions(table: str, *, as_json: Json = False) -> None:
    """Show a table's committed batches, and the classes, confidence and accuracy of the newest model's predictions.

    Parameters
    ----------
    table
        Name of the prediction table.
    """
    from infra.errors import RequestError
    from infra.storage.tables.books import list_tables, read_books
    from infra.storage.tables.records import PredictionSummary
    from tasks.classification.summarize import class_mix_shift, describe

    store = _store()
    manifests = read_books(store, table)
    if not manifests:
        known = ", ".join(list_tables(store)) or "none"
        raise RequestError(f"{store.root} has no table {table!r} with a committed batch. Tables: {known}.")
    by_model = {
        version: describe(PredictionSummary.total(m.summary for m in manifests if m.model_version == version))
        for version in dict.fromkeys(manifest.model_version for manifest in manifests)
    }
    shift = class_mix_shift(manifests)
    if as_json:
        shift_record = asdict(shift) | {"verdict": shift.verdict} if shift else None
        books = [_books(manifest) for manifest in manifests]
        print_json({"table": table, "batches": books, "models": by_model, "class_mix_shift": shift_record})
        return
    console = Console()
    batches = _table("batch", "model", "planned", "predicted", "quarantined", "committed")
    for manifest in manifests:
        counts = [f"{count:,}" for count in (manifest.planned, manifest.predicted, manifest.quarantined)]
        batches.add_row(manifest.batch, manifest.model_version, *counts, _when(manifest.provenance.created_at))
    print_table(batches)
    newest = manifests[-1].model_version
    _print_summary(console, newest, by_model[newest])
    if shift:
        style = {"moved much": "bold red", "moved some": "yellow"}.get(shift.verdict, "green")
        console.print(
            f"Class mix compared with the previous batch: [{style}]{shift.verdict}[/{style}], population stability "
            f"index {shift.index:.3f} (some from 0.1, much from 0.25)",
            highlight=False,
            soft_wrap=True,
        )
    if len(by_model) > 1:
        others = ", ".join(version for version in by_model if version != newest)
        console.print(f"For model versions {others}, see --json.", highlight=False, soft_wrap=True)


@dataset.command
def prepare(*, as_json: Json = False) -> None:
    """Import Fashion-MNIST into the store, unless it is there already."""
    from infra.storage.datasets import read_dataset
    from tasks.dataset import NAME, import_dataset

    settings = load_settings()
    store = open_store(settings.store)
    store.check_writable()
    record = read_dataset(store, NAME) or import_dataset(store, settings)
    _print_dataset(store, record.model_dump(mode="json"), as_json=as_json)


@dataset.command
def info(*, as_json: Json = False) -> None:
    """Show the Fashion-MNIST dataset in the store."""
    from infra.errors import RequestError
    from infra.storage.datasets import read_dataset
    from tasks.dataset import NAME

    store = _store()
    record = read_dataset(store, NAME)
    if record is None:
        raise RequestError(f"{store.root} has no {NAME} yet. Import it with `fmnist dataset prepare`.")
    _print_dataset(store, record.model_dump(mode="json"), as_json=as_json)


def _print_dataset(store: ObjectStore, record: dict[str, Any], *, as_json: bool) -> None:
    record["splits"] = {
        name: {"images": split["images"], "parts": [store.uri(key) for key in split["parts"]]}
        for name, split in record["splits"].items()
    }
    if as_json:
        print_json(record)
    else:
        _print_record(f"Dataset {record['name']}, version {record['version']}", record)


def _print_record(title: str, record: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=box.SIMPLE)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in _flat(record):
        table.add_row(name, str(value))
    print_table(table)


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, "\n".join(map(str, value)) if isinstance(value, list) else value))
    return rows


def _print_summary(console: Console, version: str, summary: dict[str, Any]) -> None:
    if not summary["images"]:
        console.print(f"Model version {version}: no images were classified.", highlight=False)
        return
    table = _table("class", "images", "share", "mean confidence")
    for name, row in summary["classes"].items():
        share = row["images"] / summary["images"]
        table.add_row(name, f"{row['images']:,}", f"{share:.1%}", f"{row['mean_confidence']:.3f}")
    accuracy = (
        f", accuracy {summary['accuracy']:.2%} of {summary['labelled']:,} labelled" if summary["labelled"] else ""
    )
    confidence = f"mean confidence {summary['mean_confidence']:.3f}"
    console.print(
        f"Model version {version}: {summary['images']:,} images, {confidence}{accuracy}",
        highlight=False,
        soft_wrap=True,
    )
    print_table(table)
    if summary["confusion"]:
        _print_confusion(summary["confusion"])


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


def _books(manifest: Any) -> dict[str, Any]:
    books: dict[str, Any] = manifest.model_dump(mode="json", exclude={"summary", "reasons"})
    return books | {"images_per_second": round(manifest.images_per_second)}


def _store() -> ObjectStore:
    return open_store(load_settings().store)


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMERIC else "left", no_wrap=True)
    return table


def _print(table: Table, if_empty: str) -> None:
    if table.row_count:
        print_table(table)
    else:
        Console().print(if_empty, highlight=False, soft_wrap=True)
