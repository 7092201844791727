"""Write the most important parts of the report on a batch as markdown, for Prefect's UI."""

from collections.abc import Sequence

import numpy as np

from fmnist_model.reports.batch_page import (
    ReportedBatch,
    class_mix_picture,
    class_mix_text,
    class_rows,
    label_of,
    most_probable,
)
from fmnist_model.reports.charts import Tile, draw_confusion, draw_gallery, standalone
from fmnist_model.reports.markdown import code, escaped, facts_table, svg_picture, table
from fmnist_model.reports.page import percent, shortened


def render_batch_markdown(batch: ReportedBatch, page: str) -> str:
    """Render books, class mix, confusion, least confident images and quarantine, about 150 KB with the pictures.

    Args:
        batch: the batch.
        page: address of the full report.
    """
    parts = [facts_table(_facts(batch, page)), "## Classes", escaped(class_mix_text(batch))]
    if batch.predicted:
        picture = class_mix_picture(batch)
        parts += [svg_picture(standalone(picture["svg"].encode()), picture["alt"]), _class_table(batch)]
    if batch.confusion is not None:
        drawn = draw_confusion(np.asarray(batch.confusion), "Images with a label: label by predicted class")
        description = "Confusion matrix. The full report has it as a table."
        parts += ["## Confusion", svg_picture(standalone(drawn), description)]
    if batch.least_confident:
        parts += ["## Least confident", _gallery(batch)]
    if batch.reasons:
        rows = [
            [escaped(row.reason), f"{row.images:,}", code(shortened(row.example)) if row.example else ""]
            for row in batch.reasons
        ]
        parts += ["## Quarantine", table(["reason", "images", "example"], rows, numeric=["images"])]
    if batch.passed_over:
        rows = [[escaped(row.kind), f"{row.count:,}", _examples(row.examples)] for row in batch.passed_over]
        parts += ["## Passed over", table(["kind", "count", "examples"], rows, numeric=["count"])]
    return "\n\n".join(parts)


def _examples(examples: Sequence[str]) -> str:
    return ", ".join(code(shortened(example)) for example in examples)


def _facts(batch: ReportedBatch, page: str) -> list[tuple[str, str]]:
    share = percent(batch.quarantined / batch.planned)
    rows = [
        ("model", escaped(batch.model)),
        ("planned", f"{batch.planned:,} images"),
        ("predicted", f"**{batch.predicted:,}**"),
        ("quarantined", f"**{batch.quarantined:,}** ({share})" if batch.quarantined else "0"),
        ("mean confidence", percent(batch.mean_confidence)),
        ("throughput", f"{batch.images_per_second:,.0f} images/s, {batch.seconds:,.1f} s"),
        ("table", code(batch.table)),
        ("batch", code(batch.batch)),
        ("full report", code(page)),
    ]
    if batch.labelled:
        rows.insert(5, ("accuracy", f"**{percent(batch.accuracy)}** of {batch.labelled:,} images with a label"))
    return rows


def _class_table(batch: ReportedBatch) -> str:
    columns = {"images": "images", "share": "share", "previous": "previous share", "confidence": "mean confidence"}
    if batch.previous is None:
        del columns["previous"]
    rows = [[escaped(row["name"]), *(row[column] for column in columns)] for row in class_rows(batch)]
    return table(["class", *columns.values()], rows, numeric=columns.values())


def _gallery(batch: ReportedBatch) -> str:
    tiles, rows = [], []
    for number, image in enumerate(batch.least_confident, 1):
        label, wrong = label_of(image)
        lines = [f"{name} {share:.1%}" for name, share in most_probable(image)]
        if label:
            lines.append(f"label: {label}")
        tiles.append(Tile(image.pixels, lines, wrong=wrong, name=str(number)))
        missing = escaped(f" no picture: {shortened(image.missing, 100)}") if image.pixels is None else ""
        rows.append([f"{number}", f"{code(shortened(image.uri, 80))}{missing}"])
    description = f"The {len(tiles)} images with the lowest confidence."
    picture = svg_picture(standalone(draw_gallery(tiles)), description)
    return "\n\n".join([picture, table(["image", "address"], rows)])
