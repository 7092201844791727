"""How commands print: words for people, or one JSON object for programs."""

import json
import sys
from typing import Annotated, Any

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object as the last line of standard output.")]


def print_json(figures: dict[str, Any] | list[Any]) -> None:
    """Print one line of JSON on standard output."""
    sys.stdout.write(json.dumps(figures, default=str) + "\n")
