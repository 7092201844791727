"""`fmnist predictions compact` and `fmnist predictions delete`: maintain prediction tables, without Ray or Prefect."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from flows.cli.printing import Json, print_json
from infra.settings import load_settings
from infra.storage.object_store import open_store

if TYPE_CHECKING:
    from infra.storage.tables.commit import PartSchemas
    from infra.storage.tables.maintenance.delete import Deleted


def compact_table(table: str, *, as_json: Json = False) -> None:
    """Merge the small parts of a table into large ones. Safe while runs add batches.

    Rows of small consecutive batches of a model version move into the partition of the newest of them. No image is
    lost. The replaced files stay for time travel until `fmnist store prune` removes them.

    Parameters
    ----------
    table
        Name of the prediction table.
    """
    from infra.storage.format import check_table
    from infra.storage.tables.maintenance.compact import compact

    store = open_store(load_settings().store)
    check_table(store, table)
    result = compact(store, table, _schemas())
    if as_json:
        print_json({"table": table, **asdict(result)})
        return
    Console().print(
        f"Table {table} had {result.parts_before:,} parts and has {result.parts_after:,} now. The rows of "
        f"{result.batches_merged:,} batches moved into later ones.",
        highlight=False,
        soft_wrap=True,
    )


def delete_images(
    table: str,
    *,
    image: Annotated[str, Parameter(name="--image")],
    yes: bool = False,
    dry_run: bool = False,
    as_json: Json = False,
) -> None:
    """Remove images from a table for good, with every file, report and record that mentions them.

    They are not classified again, because the plans still name them. If the command is interrupted, repeat it.

    Parameters
    ----------
    table
        Name of the prediction table.
    image
        URI of an image as it is in the table, a file with all its images, or a glob.
    yes
        Don't ask for confirmation.
    dry_run
        Show what would be removed, without changing anything.
    """
    from infra.errors import RequestError
    from infra.storage.format import check_table
    from infra.storage.tables.maintenance import delete

    store = open_store(load_settings().store)
    check_table(store, table)
    found = delete.delete_images(store, table, image, _schemas(), dry_run=True)
    removes = found.found_anything and not dry_run
    if removes and not yes:
        if not sys.stdin.isatty():
            raise RequestError(f"This removes {_summary(found)} from table {table}. Confirm it with --yes.")
        Console(stderr=True).print(f"{_summary(found)}, among them {', '.join(found.examples)}", highlight=False)
        if input(f"Remove them from table {table} for good? [y/N] ").strip().lower() not in ("y", "yes"):
            raise RequestError("Nothing was removed.")
    if removes:
        found = delete.delete_images(store, table, image, _schemas())
    if as_json:
        print_json({"table": table, "image": image, "dry_run": dry_run, **asdict(found)})
        return
    what = "would be removed" if dry_run else "removed"
    console = Console()
    if not found.found_anything:
        console.print(f"Table {table} has no image {image}.", highlight=False, soft_wrap=True)
        return
    console.print(f"{_summary(found)} {what} from table {table}.", highlight=False, soft_wrap=True)


def _schemas() -> "PartSchemas":
    from fmnist_model.predictions import prediction_schema, quarantine_schema
    from infra.storage.tables.commit import PartSchemas

    return PartSchemas(prediction_schema(), quarantine_schema())


def _summary(found: "Deleted") -> str:
    counts = {
        "prediction": found.predictions,
        "quarantined image": found.quarantine,
        "replaced file": found.files,
        "report": len(found.batches),
    }
    words = [f"{count:,} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items()]
    return f"{', '.join(words[:-1])} and {words[-1]}"
