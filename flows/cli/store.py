"""`fmnist store`: check and upgrade the object store, and remove obsolete files, without Ray or Prefect."""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flows.cli.printing import Json, print_json, print_table
from infra.errors import JobError
from infra.settings import load_settings
from infra.storage.object_store import open_store

store = App(name="store", help="Check or upgrade the object store, and remove obsolete files.")


@store.command
def check(*, as_json: Json = False) -> None:
    """Show the store's settings, and test every operation that jobs need under a scratch prefix."""
    from infra.storage.store_check import check_store

    report = check_store(open_store(load_settings().store))
    if as_json:
        print_json(asdict(report) | {"ok": report.ok})
    else:
        _print_settings(report.root, report.settings)
        table = Table(box=box.SIMPLE)
        table.add_column("operation", no_wrap=True)
        table.add_column("ms", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("reason", overflow="fold")
        outcomes = {True: "[green]ok[/green]", False: "[red]failed[/red]", None: "not tested"}
        for step in report.steps:
            table.add_row(step.name, f"{step.milliseconds:,.1f}", outcomes[step.ok], Text(step.reason))
        Console().print(table)
    failed = [step for step in report.steps if step.ok is False]
    if failed:
        raise JobError(f"{', '.join(step.name for step in failed)} failed. {failed[0].reason}")


@store.command
def prune(
    *,
    keep_best: Annotated[int, Parameter(validator=Number(gte=0))] = 3,
    older_than_hours: Annotated[float, Parameter(validator=Number(gte=0))] = 24,
    dry_run: bool = False,
    as_json: Json = False,
) -> None:
    """Remove obsolete checkpoints, and what dead writers and committed batches left behind.

    Each run keeps its best checkpoints by loss, its last one, and those of model versions. Prediction tables keep all
    rows, and lose files that only versions of the table older than N hours hold. Datasets are not touched.

    Parameters
    ----------
    keep_best
        Number of best checkpoints to keep for each run, in addition to the last one.
    older_than_hours
        Skip runs, unfinished uploads and files of tables modified or in use within the last N hours.
    dry_run
        Show what would be removed, without changing anything.
    """
    from infra.storage import retention

    root = open_store(load_settings().store)
    pruned = retention.prune(root, keep_best=keep_best, older_than=timedelta(hours=older_than_hours), dry_run=dry_run)
    if as_json:
        print_json(asdict(pruned) | {"root": root.root, "dry_run": dry_run, "bytes": pruned.size})
        return
    console = Console()
    if pruned.removed:
        table = Table(box=box.SIMPLE)
        for name in ("what", "where", "objects", "size", "reason"):
            table.add_column(name, justify="right" if name in ("objects", "size") else "left", overflow="fold")
        for removal in pruned.removed:
            where = Text(removal.uri.removeprefix(f"{root.root}/"))
            table.add_row(removal.kind, where, f"{removal.objects:,}", decimal(removal.size), removal.reason)
        print_table(table)
    what = f"{len(pruned.removed):,} items with {decimal(pruned.size)}" if pruned.removed else "nothing"
    console.print(
        f"{'Would remove' if dry_run else 'Removed'} {what} from {root.root}. {pruned.kept_checkpoints:,} checkpoints "
        f"stay{_skipped(pruned.active_runs, older_than_hours)}.",
        highlight=False,
        soft_wrap=True,
    )


@store.command
def upgrade(*, as_json: Json = False) -> None:
    """Turn the prediction tables of an older version into Delta Lake tables.

    Stop all runs of the older version first. Parts with predictions are not rewritten, and nothing is deleted. You can
    interrupt the command and run it again.
    """
    from tasks.classification.upgrade import upgrade_store

    root, progress = open_store(load_settings().store), Console(stderr=True)
    tables = upgrade_store(root, lambda line: progress.print(line, highlight=False, markup=False, soft_wrap=True))
    totals = {
        name: sum(getattr(table, name) for table in tables)
        for name in ("batches", "unfinished", "predicted", "quarantined")
    }
    if as_json:
        print_json({"root": root.root, "tables": [asdict(table) for table in tables]} | totals)
        return
    text = f"There is nothing to upgrade in {root.root}."
    if tables:
        text = (
            f"Upgraded in {root.root}: tables {len(tables):,}, batches {totals['batches']:,}, predictions "
            f"{totals['predicted']:,}."
        )
    if totals["unfinished"]:
        text += f" Unfinished batches, which the next `fmnist classify` finishes: {totals['unfinished']:,}."
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _skipped(runs: list[str], hours: float) -> str:
    if not runs:
        return ""
    return f", and all checkpoints of {len(runs):,} runs modified within the last {hours:g} hours"


def _print_settings(root: str, settings: dict[str, str]) -> None:
    Console().print(Text(root, style="bold"), soft_wrap=True)
    table = Table(show_header=False, box=box.SIMPLE)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in settings.items():
        table.add_row(name, Text(value))
    print_table(table)
