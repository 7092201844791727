"""The report of a batch of predictions: a page that needs nothing beside it, and the same, shorter, in markdown."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.drift import MOVED_MUCH, MOVED_SOME
from fmnist_model.images.decode import encode_png
from fmnist_model.reports.charts import Tile, draw_class_mix, draw_confusion, draw_gallery, standalone
from fmnist_model.reports.markdown import code, facts, plain, svg_picture, table
from fmnist_model.reports.page import confusion_rows, percent, render_page, shortened, visible

_CLASSES_SHOWN = 3
"""Of each image in the gallery: the most probable ones."""


@dataclass(frozen=True)
class QuarantineReason:
    """Why images could not be classified."""

    reason: str
    images: int
    example: str
    """URI of one of them; empty where several reasons were put together."""


@dataclass(frozen=True)
class MixBefore:
    """The class mix of the batch before, of the same model and table."""

    batch: str
    counts: Sequence[int]
    """Images by predicted class."""
    index: float
    """Population stability index from that mix to this one."""
    verdict: str
    """What the index is taken to mean: `steady`, `moved some` or `moved much`."""


@dataclass(frozen=True)
class ShownImage:
    """An image in the gallery."""

    uri: str
    probabilities: Sequence[float]
    """In class order."""
    label: int | None
    """0 to 9; None where unknown."""
    pixels: NDArray[np.uint8] | None
    """`[28, 28]`, as the network saw it; None where it can't be shown."""
    missing: str = ""
    """Why it can't."""


@dataclass(frozen=True)
class ReportedBatch:
    """What the report tells."""

    table: str
    batch: str
    model: str
    """Name and version."""
    planned: int
    predicted: int
    quarantined: int
    seconds: float
    images_per_second: float
    reasons: Sequence[QuarantineReason]
    """The most frequent first; empty where nothing was quarantined."""
    counts: Sequence[int]
    """Images by predicted class."""
    confidence: Sequence[float | None]
    """Mean by predicted class; None for a class without images."""
    mean_confidence: float | None
    before: MixBefore | None
    """None for the first batch of a model."""
    labelled: int
    """Images with a label, of those predicted."""
    accuracy: float | None
    """Share of these predicted rightly."""
    confusion: Sequence[Sequence[int]] | None
    """`[10, 10]`: rows are labels, columns predicted classes; None without labels."""
    least_confident: Sequence[ShownImage]
    """The least confident first."""
    facts: Mapping[str, str]
    """Model, code, place and the like, by name."""


def render_batch_page(batch: ReportedBatch) -> str:
    """Write the page: books, class mix, confusion, least confident images, quarantine."""
    return render_page(
        "batch_page.html",
        batch=batch,
        mix_in_words=_mix_in_words(batch),
        mix_picture=_mix_picture(batch) if batch.predicted else None,
        classes=_classes(batch),
        confusion=None if batch.confusion is None else confusion_rows(np.asarray(batch.confusion)),
        gallery=[_shown(image) for image in batch.least_confident],
    )


def render_batch_markdown(batch: ReportedBatch, page: str) -> str:
    """Write the same in markdown, some 150 KB with the pictures.

    Args:
        batch: as for the page.
        page: its address.
    """
    parts = [facts(_books(batch, page)), "## Classes", plain(_mix_in_words(batch))]
    if batch.predicted:
        picture = _mix_picture(batch)
        parts += [svg_picture(standalone(picture["svg"].encode()), picture["alt"]), _class_table(batch)]
    if batch.confusion is not None:
        drawn = draw_confusion(np.asarray(batch.confusion), "Images with a label: label by predicted class")
        parts += ["## Confusion", svg_picture(standalone(drawn), "Confusion matrix. The page has it as a table.")]
    if batch.least_confident:
        parts += ["## Least confident", _gallery(batch)]
    if batch.reasons:
        rows = [
            [plain(row.reason), f"{row.images:,}", code(shortened(row.example)) if row.example else ""]
            for row in batch.reasons
        ]
        parts += ["## Quarantine", table(["reason", "images", "one of them"], rows, numeric=["images"])]
    return "\n\n".join(parts)


def _books(batch: ReportedBatch, page: str) -> list[tuple[str, str]]:
    share = percent(batch.quarantined / batch.planned)
    rows = [
        ("model", plain(batch.model)),
        ("planned", f"{batch.planned:,} images"),
        ("predicted", f"**{batch.predicted:,}**"),
        ("quarantined", f"**{batch.quarantined:,}** ({share})" if batch.quarantined else "0"),
        ("mean confidence", percent(batch.mean_confidence)),
        ("speed", f"{batch.images_per_second:,.0f} images/s, {batch.seconds:,.1f} s"),
        ("table", code(batch.table)),
        ("batch", code(batch.batch)),
        ("whole report", code(page)),
    ]
    if batch.labelled:
        rows.insert(5, ("accuracy", f"**{percent(batch.accuracy)}** of {batch.labelled:,} images with a label"))
    return rows


def _mix_in_words(batch: ReportedBatch) -> str:
    if not batch.predicted:
        return "No image was classified."
    if batch.before is None:
        return "No batch before this one, of the same model and table, to compare the class mix with."
    return (
        f"Class mix: {batch.before.verdict} since batch {batch.before.batch}. Population stability index "
        f"{batch.before.index:.3f}; from {MOVED_SOME} on the mix has moved some, from {MOVED_MUCH} on much."
    )


def _mix_picture(batch: ReportedBatch) -> dict[str, str]:
    mixes = {"this batch": batch.counts}
    if batch.before:
        mixes["the batch before"] = batch.before.counts
    told = ", ".join(f"{row['name']} {row['share']}" for row in _classes(batch))
    svg = draw_class_mix(mixes, "Share of the images by predicted class").decode()
    return {"svg": svg, "alt": f"Share of the images by predicted class: {told}."}


def _classes(batch: ReportedBatch) -> list[dict[str, Any]]:
    before = batch.before.counts if batch.before else [0] * len(CLASS_NAMES)
    return [
        {
            "name": name,
            "images": f"{images:,}",
            "share": _share(images, batch.counts),
            "before": _share(images_before, before),
            "confidence": percent(confidence),
        }
        for name, images, images_before, confidence in zip(
            CLASS_NAMES, batch.counts, before, batch.confidence, strict=True
        )
    ]


def _share(images: int, of: Sequence[int]) -> str:
    return f"{images / max(sum(of), 1):.1%}"


def _class_table(batch: ReportedBatch) -> str:
    columns = {"images": "images", "share": "share", "before": "share before", "confidence": "mean confidence"}
    if batch.before is None:
        del columns["before"]
    rows = [[plain(row["name"]), *(row[column] for column in columns)] for row in _classes(batch)]
    return table(["class", *columns.values()], rows, numeric=columns.values())


def _most_probable(image: ShownImage) -> list[tuple[str, float]]:
    ranked = sorted(zip(image.probabilities, CLASS_NAMES, strict=True), reverse=True)
    return [(name, share) for share, name in ranked[:_CLASSES_SHOWN]]


def _label(image: ShownImage) -> tuple[str, bool]:
    """The label's name, and whether another class was predicted."""
    if image.label is None:
        return "", False
    name = CLASS_NAMES[image.label]
    return name, name != _most_probable(image)[0][0]


def _shown(image: ShownImage) -> dict[str, Any]:
    label, wrong = _label(image)
    return {
        "uri": visible(image.uri),
        "name": shortened(image.uri),
        "png": None if image.pixels is None else base64.b64encode(encode_png(image.pixels)).decode(),
        "missing": visible(image.missing),
        "classes": [(name, f"{share:.1%}", f"{share:.3f}") for name, share in _most_probable(image)],
        "label": label,
        "wrong": wrong,
    }


def _gallery(batch: ReportedBatch) -> str:
    tiles, rows = [], []
    for number, image in enumerate(batch.least_confident, 1):
        label, wrong = _label(image)
        lines = [f"{name} {share:.1%}" for name, share in _most_probable(image)]
        tiles.append(Tile(image.pixels, [*lines, f"is {label}"] if label else lines, wrong=wrong, name=str(number)))
        missing = plain(f" no picture: {shortened(image.missing, 100)}") if image.pixels is None else ""
        rows.append([f"{number}", f"{code(shortened(image.uri, 80))}{missing}"])
    words = f"The {len(tiles)} images with the lowest confidence."
    return "\n\n".join([svg_picture(standalone(draw_gallery(tiles)), words), table(["image", "address"], rows)])
