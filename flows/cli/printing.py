"""Print results: tables for people, or one JSON object for programs."""

import json
import sys
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object as the last line of standard output.")]


def print_json(value: dict[str, Any] | list[Any]) -> None:
    """Print a value as one line of JSON on standard output."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")


def print_table(table: Table) -> None:
    """Print a table on standard output without wrapping its lines, so that you can copy long values."""
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, needed)).print(table)
