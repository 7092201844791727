"""Command-line options drawn from the pydantic models that the flows take, so that both are one."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from cyclopts import Group, Parameter
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from infra.errors import RequestError

R = TypeVar("R")


@dataclass(frozen=True)
class _Leaf:
    """A field that becomes an option."""

    path: tuple[str, ...]
    """Names of the groups that it is in, outermost first, and its own."""
    field: FieldInfo
    group: Group | None
    """Under which `--help` lists it; None: among those of the command."""

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"


def options_of(
    model: type[BaseModel], *, positional: str | None = None, required: Collection[str] = ()
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command one option a field of `model`, and hand it the validated model in their place.

    A field that is a model itself is a group: its fields are options too, by their own names, and `--help` lists them
    under its title and its docstring.

    Args:
        model: the fields' descriptions become the options' help.
        positional: the field, a list, that takes the command's arguments, one at least, instead of an option.
        required: fields that the command asks for although they have defaults.

    Raises:
        TypeError: two fields would be the same option.
        RequestError: when the command is called with a value out of bounds; the message names the option.
    """
    leaves: dict[str, _Leaf] = {}
    for leaf in _leaves(model):
        if leaf.name in leaves:
            places = f"{'.'.join(leaves[leaf.name].path)} and {'.'.join(leaf.path)}"
            raise TypeError(f"{model.__name__}: {places} would both be the option {leaf.option}. Rename one.")
        leaves[leaf.name] = leaf

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(command)
        def with_options(*arguments: Any, **options: Any) -> R:
            own = {name: options.pop(name) for name in list(options) if name not in leaves}
            if positional is not None:
                if not arguments:
                    raise RequestError("URI: name at least one image file, folder or Parquet file to classify.")
                options[positional] = list(arguments)
            return command(_validated(model, leaves, options, positional), **own)

        keywords = [
            inspect.Parameter(
                leaf.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if leaf.name in required else _default(leaf.field),
                annotation=_annotation(leaf),
            )
            for leaf in leaves.values()
            if leaf.name != positional
        ]
        leading = []
        if positional is not None:
            help_text = Parameter(name="URI", help=leaves[positional].field.description)
            leading = [inspect.Parameter("uri", inspect.Parameter.VAR_POSITIONAL, annotation=Annotated[str, help_text])]
        signature = inspect.signature(command)
        others = list(signature.parameters.values())[1:]
        with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*leading, *keywords, *others]
        )
        return with_options

    return decorate


def _leaves(model: type[BaseModel], path: tuple[str, ...] = (), group: Group | None = None) -> Iterator[_Leaf]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            title = Group.create_ordered(field.title or name, help=field.annotation.__doc__ or "")
            yield from _leaves(field.annotation, (*path, name), title)
        else:
            yield _Leaf((*path, name), field, group)


def _default(field: FieldInfo) -> Any:
    return inspect.Parameter.empty if field.is_required() else field.get_default()


def _annotation(leaf: _Leaf) -> Any:
    field = leaf.field
    # What is on by default is switched off by its negative; the command line has no others.
    negative = f"--no-{leaf.option.removeprefix('--')}" if field.default is True else ()
    group: dict[str, Any] = {"group": leaf.group} if leaf.group else {}
    shown = field.default not in ("", None)
    return Annotated[
        field.annotation, Parameter(help=field.description, negative=negative, show_default=shown, **group)
    ]


def _validated(
    model: type[BaseModel], leaves: dict[str, _Leaf], values: dict[str, Any], positional: str | None
) -> BaseModel:
    try:
        return model.model_validate(_grouped(leaves, values))
    except ValidationError as error:
        first = error.errors()[0]
        wrong = next((leaf for leaf in leaves.values() if first["loc"][: len(leaf.path)] == leaf.path), None)
        if wrong is None:  # of several options together
            raise RequestError(f"{str(first['msg']).removeprefix('Value error, ')}.") from None
        name = "URI" if wrong.name == positional else wrong.option
        raise RequestError(f"{name}: {_sentence(first)}") from None


def _grouped(leaves: dict[str, _Leaf], values: dict[str, Any]) -> dict[str, Any]:
    grouped: dict[str, Any] = {}
    for name, value in values.items():
        place = grouped
        for group in leaves[name].path[:-1]:
            place = place.setdefault(group, {})
        place[name] = value
    return grouped


def _sentence(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if error["type"] == "string_pattern_mismatch":
        message = f"must match {error['ctx']['pattern']}"
    return f"{message}, not {error['input']!r}."
