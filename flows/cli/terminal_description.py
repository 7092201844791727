"""Lay out a network's description as tables for a terminal of 80 columns, or as plain text for a pipe."""

import heapq
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.description import Description, ImageDescription, ParameterDescription

_VALUES_SHOWN = 3
"""First values to show of each parameter. More don't fit in 80 columns."""


def render_description(description: Description) -> RenderableType:
    """Lay out a description for a rich console: device, structure, layers, images and parameters.

    Names and origin are printed literally, including brackets that rich would take for markup.
    """
    parts: list[RenderableType] = [
        Text.assemble("Using ", (description.device, "bold"), " device"),
        Text(_printable(description.origin), style="dim", overflow="fold"),
        *_temperature(description),
        Text(),
        Panel(Text(description.structure), title="Structure", title_align="left", box=box.ROUNDED, expand=False),
        Text(),
    ]
    if description.images:
        parts += [_layers(description), _images(description.images)]
    parts.append(_parameters(description))
    return Group(*parts)


def _temperature(description: Description) -> list[RenderableType]:
    if description.temperature == 1:
        return []
    text = f"Softmax at temperature {description.temperature:.3f}, which divides the logits"
    return [Text(text, style="dim")]


def _layers(description: Description) -> Table:
    n = len(description.images)
    table = _table(f"A batch of {n:,} {'image' if n == 1 else 'images'}, layer by layer")
    table.add_column("Layer", style="cyan", overflow="fold")
    table.add_column("Kind", no_wrap=True)
    table.add_column("Shape")
    table.add_column("Zeroed", justify="right", no_wrap=True)
    if description.input_shape is not None:
        table.add_row("(input)", "", _shape(description.input_shape), "")
    for layer in description.layers:
        shape = f"{_shape(layer.input_shape)} -> {_shape(layer.output_shape)}"
        zeroed = "" if layer.zeroed_share is None else f"{layer.zeroed_share:.2%}"
        table.add_row(Text(layer.name), layer.kind, shape, zeroed)
    return table


def _images(images: Iterable[ImageDescription]) -> Table:
    table = _table("Predicted class and confidence, followed by the two next most likely")
    table.add_column("Image", style="cyan", overflow="fold")
    table.add_column("Class", no_wrap=True)
    table.add_column("Softmax", justify="right", no_wrap=True)
    table.add_column("Logits of 0-3, 4-7, 8-9", no_wrap=True)
    for image in images:
        top = _most_likely(image)
        classes = [Text(f"{number} {CLASS_NAMES[number]}") for number in top]
        shares = [Text(f"{image.probabilities[number]:.2%}") for number in top]
        for winner in (classes[0], shares[0]):
            winner.stylize("bold green")
        table.add_row(
            Text(_printable(image.name)), _lines(classes), _lines(shares), _logits(image.logits), end_section=True
        )
    return table


def _most_likely(image: ImageDescription) -> list[int]:
    """Return the three most likely classes. The predicted class comes first even if another is just as likely."""
    others = [number for number in range(len(CLASS_NAMES)) if number != image.predicted_class]
    return [image.predicted_class, *heapq.nlargest(2, others, key=image.probabilities.__getitem__)]


def _logits(logits: Sequence[float]) -> str:
    return "\n".join(" ".join(f"{logit:6.2f}" for logit in part) for part in (logits[:4], logits[4:8], logits[8:]))


def _parameters(description: Description) -> Table:
    table = _table("Parameters")
    table.show_footer = True
    table.add_column("Name", Text("total"), style="cyan", overflow="fold")
    table.add_column("Shape", no_wrap=True)
    table.add_column("Count", f"{description.total_parameters:,}", justify="right", no_wrap=True)
    table.add_column("First values")
    for parameter in description.parameters:
        table.add_row(Text(parameter.name), _shape(parameter.shape), f"{parameter.count:,}", _first_values(parameter))
    return table


def _first_values(parameter: ParameterDescription) -> str:
    shown = parameter.first_values[:_VALUES_SHOWN]
    more = " ..." if parameter.count > len(shown) else ""
    return " ".join(f"{value:7.4f}" for value in shown) + more


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


def _shape(shape: Sequence[int]) -> Text:
    return Text(str(list(shape)))


def _lines(lines: Iterable[Text]) -> Text:
    return Text("\n").join(lines)


def _printable(name: str) -> str:
    """Replace line breaks, control characters and bytes that aren't UTF-8. File names can contain all of them."""
    encodable = name.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in encodable)
