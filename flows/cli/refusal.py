"""The sentence that the command line prints when it refuses an option."""

from typing import Any

import cyclopts
import pydantic


def refusal(error: cyclopts.CycloptsError) -> str:
    """Name the option that is wrong, what is wrong with it, and which values it takes."""
    cause = error.__cause__
    if error.argument and isinstance(cause, pydantic.ValidationError):
        # Cyclopts prints pydantic's own report here: several lines, with the field's path instead of the option.
        first = cause.errors()[0]
        leaves = (argument for argument in error.argument.children_recursive if not argument.children)
        option = next((leaf.name for leaf in leaves if leaf.keys == first["loc"]), None)
        # Without an option, the error is about several of them.
        return f"{option}: {_sentence(first)}, not {first['input']!r}." if option else f"{_sentence(first)}."
    command = " ".join(["fmnist", *(error.command_chain or ()), "--help"])
    return f"{error}\nTry `{command}`."


def _sentence(error: Any) -> str:
    if error["type"] == "string_pattern_mismatch":
        return f"must match {error['ctx']['pattern']}"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    return message.partition(", unable to parse")[0]
