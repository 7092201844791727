"""Command-line options drawn from the pydantic models that the flows take, so that both are one."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from infra.errors import RequestError

R = TypeVar("R")


def options_of(
    model: type[BaseModel], *, positional: str | None = None
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command one option a field of `model`, and hand it the validated model in their place.

    Args:
        model: the fields' descriptions become the options' help.
        positional: the field, a list, that takes the command's arguments instead of an option.

    Raises:
        RequestError: when the command is called with a value out of bounds; the message names the option.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(command)
        def with_options(*arguments: Any, **options: Any) -> R:
            own = {name: options.pop(name) for name in list(options) if name not in model.model_fields}
            if positional is not None:
                options[positional] = list(arguments)
            return command(_validated(model, options, positional), **own)

        signature = inspect.signature(command)
        keywords = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default(), annotation=_option(name, field)
            )
            if not field.is_required()
            else inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=_option(name, field))
            for name, field in model.model_fields.items()
            if name != positional
        ]
        leading = []
        if positional is not None:
            help_text = Parameter(name="URI", help=model.model_fields[positional].description)
            leading = [inspect.Parameter("uri", inspect.Parameter.VAR_POSITIONAL, annotation=Annotated[str, help_text])]
        others = list(signature.parameters.values())[1:]
        with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*leading, *keywords, *others]
        )
        return with_options

    return decorate


def _option(name: str, field: FieldInfo) -> Any:
    # What is on by default is switched off by its negative; the command line has no others.
    negative = f"--no-{name.replace('_', '-')}" if field.default is True else ()
    return Annotated[field.annotation, Parameter(help=field.description, negative=negative)]


def _validated(model: type[BaseModel], values: dict[str, Any], positional: str | None) -> BaseModel:
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several options together
            raise RequestError(f"{str(first['msg']).removeprefix('Value error, ')}.") from None
        field = str(first["loc"][0])
        name = "URI" if field == positional else f"--{field.replace('_', '-')}"
        raise RequestError(f"{name}: {_sentence(first)}") from None


def _sentence(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if error["type"] == "string_pattern_mismatch":
        message = f"must match {error['ctx']['pattern']}"
    if error["type"] == "too_short":
        return "name at least one image file, folder or Parquet file to classify."
    return f"{message}, not {error['input']!r}."
