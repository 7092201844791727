"""Write the report on a batch of predictions as an HTML page that loads nothing else."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.evaluation.drift import MOVED_MUCH, MOVED_SOME
from fmnist_model.images.decode import encode_png
from fmnist_model.reports.charts import draw_class_mix
from fmnist_model.reports.page import confusion_rows, percent, printable, render_page, shortened

_CLASSES_PER_IMAGE = 3
"""Number of most probable classes to show of each image in the gallery."""


@dataclass(frozen=True)
class QuarantineReason:
    """A reason why images could not be classified."""

    reason: str
    images: int
    """Number of images in quarantine for this reason."""
    example: str
    """URI of one of these images. Empty for several reasons in one row."""


@dataclass(frozen=True)
class PassedOverFiles:
    """Files or folders among the inputs that the run passed over."""

    kind: str
    """Their ending, or what they are."""
    count: int
    examples: Sequence[str]
    """Paths or URIs of some of them."""


@dataclass(frozen=True)
class PreviousMix:
    """The class mix of the previous batch of the same model and table."""

    batch: str
    """Id of the previous batch."""
    counts: Sequence[int]
    """Images by predicted class."""
    index: float
    """Population stability index between that mix and this one."""
    verdict: str
    """Meaning of the index: `steady`, `moved some` or `moved much`."""


@dataclass(frozen=True)
class ShownImage:
    """An image in the gallery."""

    uri: str
    probabilities: Sequence[float]
    """`[10]`, in class order."""
    label: int | None
    """True class, 0 to 9. None if unknown."""
    pixels: NDArray[np.uint8] | None
    """`[28, 28]`, as the network saw it. None if the image can't be shown."""
    missing: str = ""
    """Reason why the image can't be shown."""


@dataclass(frozen=True)
class ReportedBatch:
    """The batch that a report is about."""

    table: str
    batch: str
    """Id of the batch."""
    model: str
    """Name and version of the model."""
    planned: int
    predicted: int
    quarantined: int
    seconds: float
    images_per_second: float
    reasons: Sequence[QuarantineReason]
    """Reasons for quarantine, the most frequent first."""
    counts: Sequence[int]
    """Images by predicted class."""
    confidence: Sequence[float | None]
    """Mean confidence by predicted class. None for a class without images."""
    mean_confidence: float | None
    """Mean confidence of all images. None without images."""
    previous: PreviousMix | None
    """Class mix of the previous batch. None for the first batch of a model in a table."""
    labelled: int
    """Number of predicted images with a label."""
    accuracy: float | None
    """Share of the labelled images that are predicted correctly. None without labels."""
    confusion: Sequence[Sequence[int]] | None
    """`[10, 10]`: images by label (row) and predicted class (column). None without labels."""
    least_confident: Sequence[ShownImage]
    """Images with the lowest confidence, in rising order."""
    facts: Mapping[str, str]
    """Model, code, storage and other provenance, by name."""
    passed_over: Sequence[PassedOverFiles] = ()
    """What the inputs hold apart from images."""


def render_batch_page(batch: ReportedBatch) -> str:
    """Render books, class mix, confusion, least confident images and quarantine. Any text is escaped."""
    return render_page(
        "batch_page.html",
        batch=batch,
        class_mix_text=class_mix_text(batch),
        class_mix_picture=class_mix_picture(batch) if batch.predicted else None,
        classes=class_rows(batch),
        confusion=None if batch.confusion is None else confusion_rows(np.asarray(batch.confusion)),
        gallery=[_gallery_item(image) for image in batch.least_confident],
    )


def class_mix_text(batch: ReportedBatch) -> str:
    """Say how far the class mix moved since the previous batch."""
    if not batch.predicted:
        return "No image was classified."
    if batch.previous is None:
        return "This model has no previous batch in this table to compare the class mix with."
    return (
        f"Class mix: {batch.previous.verdict} since batch {batch.previous.batch}. The population stability index is "
        f"{batch.previous.index:.3f}. From {MOVED_SOME} the mix has moved some, from {MOVED_MUCH} it has moved much."
    )


def class_mix_picture(batch: ReportedBatch) -> dict[str, str]:
    """Draw the class mix, next to the previous one if there is one: an `svg` and an `alt` text."""
    mixes = {"this batch": batch.counts}
    if batch.previous:
        mixes["previous batch"] = batch.previous.counts
    shares = ", ".join(f"{row['name']} {row['share']}" for row in class_rows(batch))
    title = "Share of the images by predicted class"
    return {"svg": draw_class_mix(mixes, title).decode(), "alt": f"{title}: {shares}."}


def class_rows(batch: ReportedBatch) -> list[dict[str, str]]:
    """Format each class's `name`, `images`, `share`, `previous` share and mean `confidence`."""
    previous = batch.previous.counts if batch.previous else [0] * len(CLASS_NAMES)
    return [
        {
            "name": name,
            "images": f"{images:,}",
            "share": _share(images, batch.counts),
            "previous": _share(previous_images, previous),
            "confidence": percent(confidence),
        }
        for name, images, previous_images, confidence in zip(
            CLASS_NAMES, batch.counts, previous, batch.confidence, strict=True
        )
    ]


def most_probable(image: ShownImage) -> list[tuple[str, float]]:
    """Return names and probabilities of an image's three most probable classes."""
    ranked = sorted(zip(image.probabilities, CLASS_NAMES, strict=True), reverse=True)
    return [(name, share) for share, name in ranked[:_CLASSES_PER_IMAGE]]


def label_of(image: ShownImage) -> tuple[str, bool]:
    """Return the name of an image's label, empty if unknown, and whether the prediction differs from it."""
    if image.label is None:
        return "", False
    name = CLASS_NAMES[image.label]
    return name, name != most_probable(image)[0][0]


def _share(images: int, counts: Sequence[int]) -> str:
    return f"{images / max(sum(counts), 1):.1%}"


def _gallery_item(image: ShownImage) -> dict[str, Any]:
    label, wrong = label_of(image)
    return {
        "uri": printable(image.uri),
        "name": shortened(image.uri),
        "png": None if image.pixels is None else base64.b64encode(encode_png(image.pixels)).decode(),
        "missing": printable(image.missing),
        "classes": [(name, f"{share:.1%}", f"{share:.3f}") for name, share in most_probable(image)],
        "label": label,
        "wrong": wrong,
    }
