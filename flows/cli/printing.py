"""Print results: tables for people, or one JSON object for programs."""

import json
import sys
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object as the last line of standard output.")]

_NUMERIC = frozenset({"version", "test accuracy", "planned", "predicted", "quarantined", "images", "share"})


_WIDEST = 1000
"""Columns of the widest table. A table takes only the columns that it needs."""


def print_json(value: dict[str, Any] | list[Any]) -> None:
    """Print a value as one line of JSON on standard output."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")


def print_table(table: Table) -> None:
    """Print a table on standard output without wrapping its lines, so that you can copy long values."""
    Console(width=max(Console().width, _WIDEST)).print(table)


def new_table(*columns: str) -> Table:
    """Make a table whose columns have these headings."""
    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMERIC else "left", no_wrap=True)
    return table


def print_rows(table: Table, if_empty: str) -> None:
    """Print a table, or a sentence if it has no rows."""
    if table.row_count:
        print_table(table)
    else:
        Console().print(if_empty, highlight=False, soft_wrap=True)


def time_of(moment: datetime) -> str:
    """Format a time in the local time zone, to the minute."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"
