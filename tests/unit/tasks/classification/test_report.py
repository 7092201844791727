"""The report of a batch is complete whatever the batch contains, and never fails a run."""

import base64
import gzip
import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.formats.interface import ContainerPiece
from fmnist_model.predictions import Predictions, Rejection, prediction_batch, quarantine_batch
from fmnist_model.reports.batch_markdown import render_batch_markdown
from fmnist_model.reports.batch_page import (
    PassedOverFiles,
    PreviousMix,
    QuarantineReason,
    ReportedBatch,
    ShownImage,
    render_batch_page,
)
from fmnist_model.reports.markdown import code, escaped
from fmnist_model.reports.page import printable, shortened
from infra.orchestration.events import BATCH_COMMITTED, BATCH_OVER_ERROR_SHARE, CLASS_MIX_MOVED
from infra.storage.input_files import InputsUnavailable
from infra.storage.keys import part_name, plan_key, quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import BatchBooks, list_tables, read_books
from infra.storage.tables.delta import open_delta
from infra.storage.tables.parts import PartFile, open_part
from infra.storage.tables.planning.batches import NumberedBatch, list_batches, take_number
from infra.storage.tables.planning.plan import BatchPlan, Piece, ShardInputs, cut_into_shards, write_plan
from infra.storage.tables.planning.staged_inputs import DoneImages, PlannedFiles, StagedInputs
from infra.storage.tables.records import OTHER_REASONS, Reason, ShardRecord, create_record
from tasks.artifacts import show_markdown
from tasks.classification.classify import ClassifiedBatch
from tasks.classification.commit import TooManyErrors, check_error_share, commit_batches, commit_classified
from tasks.classification.gallery import _join_near, show_least_confident
from tasks.classification.inputs import list_files, pieces_of
from tasks.classification.passed_over import PassedOver
from tasks.classification.plan import PlannedWork
from tasks.classification.read import container_batches, read_shard
from tasks.classification.reasons import is_retryable, reason_kind
from tasks.classification.report import _reasons, write_batch_reports
from tasks.classification.tally import ShardTally
from tests.unit.tasks.classification.image_inputs import (
    OPTIONS,
    encode_idx,
    model_version,
    picture,
    png,
    save_files,
    save_parquet,
    save_tar,
)
from tests.unit.tasks.training.test_report import Page

HOSTILE = [
    "a|b.png",
    "two\nlines.png",
    "`tick`.png",
    "<script>alert(1)</script>.png",
    '" onload="x.png',
    "[x](y)_*z*_.png",
]


def shown(number: int = 0, **changes: Any) -> ShownImage:
    probabilities = [0.05] * 10
    probabilities[6], probabilities[4] = 0.4, 0.2
    image = ShownImage(f"file:///pictures/{number}.png", probabilities, label=4, pixels=picture(number))
    return replace(image, **changes)


BATCH = ReportedBatch(
    table="mine",
    batch="0123456789abcdef",
    model="fashion-mnist, version 3",
    planned=1010,
    predicted=1000,
    quarantined=10,
    seconds=2.0,
    images_per_second=505.0,
    reasons=[QuarantineReason("truncated: N bytes", 10, "file:///broken.png")],
    counts=[100] * 10,
    confidence=[0.9] * 9 + [None],
    mean_confidence=0.9,
    previous=PreviousMix("fedcba9876543210", [50] * 5 + [150] * 5, 0.3, "moved much"),
    labelled=200,
    accuracy=0.95,
    confusion=(19 * np.eye(10, dtype=int) + np.eye(10, k=1, dtype=int)).tolist(),
    least_confident=[shown(number) for number in range(20)],
    facts={"code": "0.1.0"},
)


PASSED_OVER = [
    PassedOverFiles(".heic", 1, ["/pictures/a.heic"]),
    PassedOverFiles("unreadable folder", 1200, ["/pictures/lost+found", "/pictures/x"]),
]


# The page


def test_page_shows_what_was_passed_over() -> None:
    page = Page(render_batch_page(replace(BATCH, passed_over=PASSED_OVER)))
    assert page.rows("Passed over by kind")[1:] == [
        [".heic", "1", "/pictures/a.heic"],
        ["unreadable folder", "1,200", "/pictures/lost+found, /pictures/x"],
    ]


def test_page_has_no_table_of_nothing_passed_over() -> None:
    assert "Passed over" not in Page(render_batch_page(BATCH)).texts("h2")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_that_was_passed_over_is_shown_literally(name: str) -> None:
    batch = replace(BATCH, passed_over=[PassedOverFiles(".png", 1, [name])])
    [_, row] = Page(render_batch_page(batch)).rows("Passed over by kind")
    assert row[2] == printable(name)
    markdown = render_batch_markdown(batch, "page")
    assert code(shortened(name)) in markdown
    assert len(markdown.split("## Passed over")[1].splitlines()) == 5


def test_markdown_shows_what_was_passed_over() -> None:
    lines = render_batch_markdown(replace(BATCH, passed_over=PASSED_OVER), "page").splitlines()
    assert f"| {escaped('unreadable folder')} | 1,200 |" in "\n".join(lines)
    assert "## Passed over" not in render_batch_markdown(BATCH, "page")


def test_page_is_self_contained() -> None:
    page = Page(render_batch_page(BATCH))
    targets = [element.attributes.get(name) for element in page.elements for name in ("src", "href", "xlink:href")]
    assert {target[:5] for target in targets if target and not target.startswith("#")} == {"data:"}
    assert page.all("script") + page.all("link") == []


def test_page_shows_books_and_accuracy() -> None:
    figures = " ".join(Page(render_batch_page(BATCH)).texts("dd"))
    assert all(figure in figures for figure in ("1,000", "1,010", "10", "0.99%", "95.00%"))


def test_page_compares_the_class_mix_with_the_previous_batch() -> None:
    page = Page(render_batch_page(BATCH))
    assert any(all(words in text for words in ("moved much", "fedcba9876543210", "0.300")) for text in page.texts("p"))
    _, first, *_ = page.rows("Predicted classes")
    assert first == ["T-shirt/top", "100", "10.0%", "5.0%", "90.00%"]


def test_gallery_shows_three_probable_classes_and_the_label_of_each_image() -> None:
    page = Page(render_batch_page(BATCH))
    items = [text for text in page.texts("li") if "file:///" in text]
    assert len(items) == 20
    assert re.sub(r"\s", "", items[0]).startswith("Shirt40.0%Coat20.0%")
    assert items[0].count("Coat") == 2
    source = str(page.all("img")[3].attributes["src"]).removeprefix("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))), picture(3))


def test_long_uri_is_shortened_and_complete_in_the_title() -> None:
    uri = f"file:///{'folder/' * 30}image.png"
    page = Page(render_batch_page(replace(BATCH, least_confident=[shown(uri=uri)])))
    [address] = [element for element in page.all("code") if "title" in element.attributes]
    assert address.attributes["title"] == uri
    assert address.text.startswith("…")
    assert address.text.endswith("folder/image.png")
    assert len(address.text) < 60


def test_image_without_pixels_shows_the_reason() -> None:
    batch = replace(BATCH, least_confident=[shown(pixels=None, missing="vanished: some reason")])
    assert any("vanished: some reason" in text for text in Page(render_batch_page(batch)).texts("div"))
    assert "vanished: some reason" in unescape(render_batch_markdown(batch, "file:///page"))


INCOMPLETE: dict[str, ReportedBatch] = {
    "no previous batch": replace(BATCH, previous=None),
    "no labels": replace(BATCH, labelled=0, accuracy=None, confusion=None, least_confident=[shown(label=None)]),
    "nothing quarantined": replace(BATCH, quarantined=0, predicted=1010, reasons=[]),
    "nothing predicted": replace(
        BATCH,
        predicted=0,
        quarantined=1010,
        counts=[0] * 10,
        confidence=[None] * 10,
        mean_confidence=None,
        previous=None,
        labelled=0,
        accuracy=None,
        confusion=None,
        least_confident=[],
    ),
}


@pytest.mark.parametrize(
    ("batch", "missing"),
    [
        (INCOMPLETE["no previous batch"], "previous share"),
        (INCOMPLETE["no labels"], "Confusion"),
        (INCOMPLETE["nothing quarantined"], "Reasons"),
        (INCOMPLETE["nothing predicted"], "Least confident"),
    ],
    ids=INCOMPLETE,
)
def test_page_omits_sections_without_data(batch: ReportedBatch, missing: str) -> None:
    page = render_batch_page(batch)
    Page(page)
    assert missing in render_batch_page(BATCH)
    assert missing not in page


@pytest.mark.parametrize("batch", INCOMPLETE.values(), ids=INCOMPLETE)
def test_markdown_omits_sections_without_data(batch: ReportedBatch) -> None:
    text = unescape(render_batch_markdown(batch, "file:///page"))
    assert ("## Confusion" in text, "## Quarantine" in text) == (batch.labelled > 0, bool(batch.reasons))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_any_name_appears_unchanged_on_the_page(hostile: str) -> None:
    batch = replace(
        BATCH,
        least_confident=[shown(uri=hostile)],
        reasons=[QuarantineReason(hostile, 1, hostile)],
        facts={hostile: hostile},
    )
    page = Page(render_batch_page(batch))
    on_one_line = hostile.replace("\n", "\\n")
    assert page.all("script") == []
    assert not any("onload" in element.attributes for element in page.elements)
    assert page.rows("Reasons")[1] == [on_one_line, "1", on_one_line]
    assert on_one_line in [element.text for element in page.all("code") if "title" in element.attributes]


# The markdown


def unescape(markdown: str) -> str:
    """The text without the backslashes of Markdown."""
    return re.sub(r"\\(.)", r"\1", markdown)


@pytest.mark.parametrize("hostile", [*HOSTILE, "|\\|`|``", "&lt;", "a\u202eb\x00c", "https://x.org", "# x", "~~x~~"])
def test_any_name_in_markdown_is_plain_text(hostile: str) -> None:
    written = escaped(hostile)
    assert not set(re.sub(r"\\[!-~]", "", written)) & set("|`<>[]()*_\\&\"'~#:\n\x00\u202e")
    assert unescape(written) == "".join(c if c.isprintable() else ascii(c)[1:-1] for c in hostile)
    assert code(hostile) == f"<code>{written}</code>"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_name_does_not_break_the_tables_in_markdown(hostile: str) -> None:
    batch = replace(
        BATCH, least_confident=[shown(uri=hostile)] * 20, reasons=[QuarantineReason(hostile, 1, hostile)] * 11
    )
    tables = [line for line in render_batch_markdown(batch, hostile).splitlines() if line.startswith("|")]
    columns = [re.sub(r"\\.", "", line).count("|") - 1 for line in tables]
    assert columns == [2] * 12 + [5] * 12 + [2] * 22 + [3] * 13


def test_markdown_of_a_full_report_fits_into_an_artifact() -> None:
    long = "file:///" + "größe <|>/" * 100
    reasons = [QuarantineReason("x" * 200, 1, long)] * 11
    counts = np.full((10, 10), 123_456)
    batch = replace(
        BATCH, least_confident=[shown(n, uri=long) for n in range(20)], reasons=reasons, confusion=counts.tolist()
    )
    assert len(render_batch_markdown(batch, long)) < 300_000


def test_pictures_in_markdown_have_their_own_background_and_colours() -> None:
    found = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", render_batch_markdown(BATCH, "file:///page"))
    pictures = [base64.b64decode(data).decode() for data in found]
    assert len(pictures) == 3
    assert all('fill="#ffffff"' in picture and "var(" not in picture for picture in pictures)


# In the store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("FMNIST_STORE", str(tmp_path / "store"))
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """Emitted events: name, resource and payload."""
    events: list[tuple[str, str, dict[str, Any]]] = []

    def announce(event: str, resource: str, **payload: Any) -> None:
        events.append((event, resource, payload))

    monkeypatch.setattr("tasks.classification.commit.announce", announce)
    monkeypatch.setattr("tasks.classification.report.announce", announce)
    return events


def classified(
    store: ObjectStore,
    scratch: Path,
    inputs: Path,
    *,
    predicted: Sequence[int] = range(10),
    broken: Sequence[str] = (),
) -> ClassifiedBatch:
    """Plan a batch and write its parts: the predicted classes repeat, and the confidence rises from 0.2 to 0.9."""
    work = scratch / inputs.name.replace(".", "-")
    work.mkdir(parents=True)
    staged = StagedInputs(work)
    staged.stage(list_files([str(inputs)], OPTIONS))
    number = len(list_batches(store, "mine")) + 1
    plan = write_plan(
        store,
        table="mine",
        number=number,
        model_version="1",
        options=OPTIONS.model_dump(),
        inputs=cut_into_shards(pieces_of(staged.compare(PlannedFiles("1")).new_files(), OPTIONS), 1e18),
        superseded=0,
        scratch=work,
    )
    entry = NumberedBatch(number=number, batch=plan.batch, model_version="1", options=plan.options)
    take_number(store, "mine", entry)
    return ClassifiedBatch(plan, {0: finish_shard(store, plan, predicted, broken)}, seconds=1.0)


def finish_shard(store: ObjectStore, plan: BatchPlan, predicted: Sequence[int], broken: Sequence[str]) -> ShardRecord:
    batches = list(read_shard(ShardInputs(store, plan).of(0), OPTIONS))
    images = pa.concat_arrays([batch.images for batch in batches])
    labels = pa.concat_arrays([batch.labels for batch in batches])
    bad = [row for row, image in enumerate(images.to_pylist()) if any(image.endswith(name) for name in broken)]
    good = pa.array([row for row in range(len(images)) if row not in bad], pa.int64())
    reasons = {row: f"truncated: {row} bytes of {images[row].as_py()}" for row in bad}
    rejected = {row: Rejection(reason_kind(text), text, is_retryable(text)) for row, text in reasons.items()}
    kept = images.take(good), made_up_predictions(predicted, len(good)), labels.take(good)
    tally = ShardTally(len(CLASS_NAMES))
    tally.add_rejections(images, rejected)
    tally.add_predictions(*kept)
    versions: Any = {"file_version": plan.number, "model_version": plan.model_version}
    quarantine = quarantine_batch(images, rejected, labels, **versions)
    record = ShardRecord(
        shard=0,
        planned=len(images),
        predicted=len(good),
        quarantined=len(bad),
        parts=write_part(store, table_folder("mine"), plan, prediction_batch(*kept, **versions)),
        quarantine=write_part(store, quarantine_folder("mine"), plan, quarantine),
        reasons=tally.reasons,
        summary=tally.summary,
        least_confident=tally.least_confident,
    )
    return create_record(store, plan, record)


def made_up_predictions(predicted: Sequence[int], count: int) -> Predictions:
    classes = np.resize(np.array(predicted, np.int8), count)
    confidence = np.linspace(0.2, 0.9, count, dtype=np.float32)
    probabilities = np.repeat(((1 - confidence) / 9)[:, None], 10, axis=1).astype(np.float32)
    probabilities[np.arange(count), classes] = confidence
    return Predictions(classes, confidence, probabilities)


def write_part(store: ObjectStore, folder: str, plan: BatchPlan, rows: pa.RecordBatch) -> list[PartFile]:
    if not len(rows):
        return []
    with open_part(store, folder, part_name(plan.batch, 0, "0" * 12), rows.schema) as part:
        part.write(rows)
    return [part.finished]


@dataclass(frozen=True)
class Committed:
    """A committed batch, as the report's step gets it."""

    books: BatchBooks
    classified: ClassifiedBatch

    @property
    def batch(self) -> str:
        """Id of the batch."""
        return self.books.batch


def committed(store: ObjectStore, batch: ClassifiedBatch) -> Committed:
    return Committed(commit_classified(store, model_version(1), batch), batch)


def write_reports(*batches: Committed, passed_over: PassedOver | None = None) -> list[str]:
    books, classified = [batch.books for batch in batches], [batch.classified for batch in batches]
    return write_batch_reports.fn(books, classified, passed_over or PassedOver())


def loose(folder: Path, count: int) -> Path:
    save_files(folder, {f"{number:03d}.png": png(number) for number in range(count)})
    return folder


def report_of(store: ObjectStore, batch: Committed) -> Page:
    [uri] = write_reports(batch)
    key = f"predictions/mine/_reports/{batch.batch}/index.html"
    assert uri == f"{store.root}/{key}"
    return Page(store.read(key).decode())


def test_report_describes_its_batch(store: ObjectStore, tmp_path: Path) -> None:
    batch = classified(store, tmp_path / "scratch", loose(tmp_path / "in", 30), broken=["007.png", "009.png"])
    page = report_of(store, committed(store, batch))
    figures = " ".join(page.texts("dd")[:3]).split()
    assert {"28", "30", "2"} <= set(figures)
    assert page.rows("Reasons")[1:] == [["truncated: N bytes of …", "2", f"file://{tmp_path}/in/007.png"]]
    assert len(page.all("img")) == 20


def test_newest_report_shows_what_the_run_passed_over(store: ObjectStore, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    batches = [committed(store, classified(store, scratch, loose(tmp_path / name, 2))) for name in ("a", "b")]
    passed_over = PassedOver()
    passed_over.add(".docx", "/images/notes.docx")
    written = write_reports(*batches, passed_over=passed_over)
    pages = [Page(store.read(uri.removeprefix(f"{store.root}/")).decode()) for uri in written]
    assert "Passed over" not in pages[0].texts("h2")
    assert pages[1].rows("Passed over by kind")[1:] == [[".docx", "1", "/images/notes.docx"]]


def test_gallery_starts_with_the_least_confident_images_and_has_their_pixels(
    store: ObjectStore, tmp_path: Path
) -> None:
    batch = committed(store, classified(store, tmp_path / "scratch", loose(tmp_path / "in", 30)))
    found = gallery(store, batch)
    assert [image.uri for image in found] == [f"file://{tmp_path}/in/{number:03d}.png" for number in range(20)]
    for number, image in enumerate(found):
        np.testing.assert_array_equal(image.pixels, picture(number))


def save_container(folder: Path, kind: str) -> None:
    """Write a container with the pictures 0 to 59."""
    files = [png(number) for number in range(60)]
    if kind == "parquet":
        save_parquet(folder / "a.parquet", files, [1] * 60, group=7)
    elif kind == "tar":
        save_tar(folder / "a.tar", [(f"x/{number:02d} ä.png", data) for number, data in enumerate(files)])
    else:
        data = encode_idx(np.stack([picture(number) for number in range(60)]))
        name = "images-idx3-ubyte" + (".gz" if kind == "gzipped idx" else "")
        (folder / name).write_bytes(gzip.compress(data) if kind == "gzipped idx" else data)


@pytest.mark.parametrize("kind", ["parquet", "tar", "idx", "gzipped idx"])
def test_gallery_shows_images_in_containers(store: ObjectStore, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save_container(folder, kind)
    found = gallery(store, committed(store, classified(store, tmp_path / "scratch", folder)))
    assert len(found) == 20
    for number, image in enumerate(found):
        np.testing.assert_array_equal(image.pixels, picture(number))


def test_gallery_reads_only_row_groups_with_images_it_shows(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save_container(folder, "parquet")
    batch = committed(store, classified(store, tmp_path / "scratch", folder))
    read: list[int] = []

    def note_and_read(opened: Any, piece: Piece, options: Any) -> Any:
        read.append(piece.rows)
        return container_batches(opened, piece, options)

    monkeypatch.setattr("tasks.classification.gallery.container_batches", note_and_read)
    gallery(store, batch)
    assert sum(read) == 20


def test_gallery_does_not_read_a_container_that_is_too_large(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save_container(folder, "tar")
    batch = committed(store, classified(store, tmp_path / "scratch", folder))
    monkeypatch.setattr("tasks.classification.gallery._MAX_BYTES", 1000)
    found = gallery(store, batch)
    assert all(image.pixels is None and re.search(r"[\d,]+ bytes", image.missing) for image in found)


def test_gallery_shows_a_file_named_like_a_place_in_a_container(store: ObjectStore, tmp_path: Path) -> None:
    save_files(tmp_path / "in", {"a.parquet#row=3.png": png(1), "b#member=x.png": png(2)})
    batch = committed(store, classified(store, tmp_path / "scratch", tmp_path / "in"))
    first, second = gallery(store, batch)
    np.testing.assert_array_equal(first.pixels, picture(1))
    np.testing.assert_array_equal(second.pixels, picture(2))


def test_image_that_vanished_or_changed_has_a_placeholder(store: ObjectStore, tmp_path: Path) -> None:
    folder = loose(tmp_path / "in", 4)
    batch = committed(store, classified(store, tmp_path / "scratch", folder))
    (folder / "000.png").unlink()
    (folder / "001.png").write_bytes(png(99))
    gone, changed, *others = gallery(store, batch)
    assert (gone.pixels, changed.pixels) == (None, None)
    assert (gone.missing[:8], changed.missing[:7]) == ("vanished", "changed")
    assert all(image.pixels is not None for image in others)


@pytest.mark.parametrize("kind", ["parquet", "tar", "idx"])
def test_images_in_a_container_that_vanished_or_changed_have_placeholders(
    store: ObjectStore, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save_container(folder, kind)
    batch = committed(store, classified(store, tmp_path / "scratch", folder))
    [file] = folder.iterdir()
    file.write_bytes(b"something else")
    assert {image.pixels is None for image in gallery(store, batch)} == {True}
    file.unlink()
    assert {image.missing.partition(":")[0] for image in gallery(store, batch)} == {"vanished"}


def test_report_without_a_plan_lacks_only_the_pictures(store: ObjectStore, tmp_path: Path) -> None:
    batch = committed(store, classified(store, tmp_path / "scratch", loose(tmp_path / "in", 3)))
    store.delete(plan_key("mine", batch.batch))
    assert all(image.pixels is None and "plan" in image.missing for image in gallery(store, batch))
    assert report_of(store, batch).all("img") == []


@pytest.mark.parametrize("error", [KeyError("offset"), MemoryError(), InputsUnavailable("no answer")], ids=repr)
def test_image_that_can_not_be_read_again_lacks_only_its_picture(
    store: ObjectStore, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = loose(tmp_path / "in", 3)
    save_tar(folder / "c.tar", [("1.png", png(7))])
    batch = committed(store, classified(store, tmp_path / "scratch", folder))

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("tasks.classification.gallery.container_batches", fail)
    found = {image.uri.rpartition("/")[2]: image for image in gallery(store, batch)}
    assert found.pop("c.tar#member=1.png").missing
    assert all(image.pixels is not None for image in found.values())
    assert len(found) == 3


def test_shard_with_a_deadly_image_is_not_read_again(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = committed(store, classified(store, tmp_path / "scratch", loose(tmp_path / "in", 3)))
    reason = Reason(kind="crashed", reason="crashed: …", images=1, example="file:///a.png")
    deadly = [record.model_copy(update={"reasons": [reason]}) for record in batch.classified.records.values()]
    monkeypatch.setattr("tasks.classification.gallery.read_shard", lambda *_: 1 / 0)
    found = show_least_confident(store, batch.classified.plan, deadly)
    assert len(found) == 3
    assert all(image.pixels is None and "kill" in image.missing for image in found)


def test_batch_with_only_broken_images_has_a_report(store: ObjectStore, tmp_path: Path) -> None:
    batch = classified(store, tmp_path / "scratch", loose(tmp_path / "in", 3), broken=[".png"])
    figures = report_of(store, committed(store, batch)).texts("dd")
    assert (figures[0], figures[2]) == ("0", "3")


def test_rare_reasons_are_summed_up(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.classification.report._MAX_REASONS", 1)
    monkeypatch.setattr("tasks.classification.reasons._NUMBER", re.compile("no number"))
    batch = classified(store, tmp_path / "scratch", loose(tmp_path / "in", 5), broken=["1.png", "2.png", "3.png"])
    _, first, others = report_of(store, committed(store, batch)).rows("Reasons")
    assert first[:2] == ["truncated: 1 bytes of …", "1"]
    assert others == [OTHER_REASONS, "2", ""]


def test_reasons_that_the_books_sum_up_come_last() -> None:
    reasons = [Reason(kind="x", reason="x: a", images=2, example="a")]
    reasons += [Reason(kind=kind, reason=OTHER_REASONS, images=9, example="b") for kind in "xy"]
    shown = _reasons(reasons)
    assert [(reason.reason, reason.images) for reason in shown] == [("x: a", 2), (OTHER_REASONS, 18)]


def test_class_mix_is_compared_with_the_previous_batch_and_a_large_change_emits_an_event(
    store: ObjectStore, tmp_path: Path, events: list[tuple[str, str, dict[str, Any]]]
) -> None:
    scratch = tmp_path / "scratch"
    first = committed(store, classified(store, scratch, loose(tmp_path / "a", 20)))
    empty = committed(store, classified(store, scratch, loose(tmp_path / "b", 2), broken=[".png"]))
    same = committed(store, classified(store, scratch, loose(tmp_path / "c", 30)))
    other = committed(store, classified(store, scratch, loose(tmp_path / "d", 30), predicted=[5]))
    for batch, verdict, before in ((first, None, None), (empty, None, None), (same, "steady", first.batch)):
        assert mix_in(report_of(store, batch)) == (verdict, before)
    assert events == []
    assert mix_in(report_of(store, other)) == ("moved much", same.batch)
    [(event, resource, payload)] = events
    assert (event, resource) == (CLASS_MIX_MOVED, "table.mine")
    assert (payload["before"], payload["after"]) == (same.batch, other.batch)
    assert payload["index"] > 0.25


def mix_in(page: Page) -> tuple[str | None, str | None]:
    """The verdict about the class mix on a page, and the batch it was compared with."""
    text = " ".join(page.texts("p"))
    verdict = re.search(r"steady|moved some|moved much", text)
    before = re.search(r"batch ([0-9]{8}-[0-9a-f]{16})", text)
    return (verdict[0], before[1]) if verdict and before else (None, None)


def test_failed_report_is_logged_and_does_not_fail_the_run(
    store: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scratch = tmp_path / "scratch"
    whole = committed(store, classified(store, scratch, loose(tmp_path / "a", 2)))
    lost = committed(store, classified(store, scratch, loose(tmp_path / "b", 3)))
    # A folder in place of the report's file can't be replaced.
    (tmp_path / f"store/predictions/mine/_reports/{lost.batch}/index.html/x").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        written = write_reports(lost, whole)
    assert written == [store.uri(f"predictions/mine/_reports/{whole.batch}/index.html")]
    [warning] = caplog.messages
    assert lost.batch in warning


def test_failed_artifact_is_logged_and_does_not_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no server answers")

    monkeypatch.setattr("prefect.artifacts.create_markdown_artifact", refuse)
    monkeypatch.setattr("prefect.context.TaskRunContext.get", object)
    monkeypatch.setattr("tasks.artifacts.run_log", lambda: logging.getLogger("tests"))
    with caplog.at_level(logging.WARNING):
        show_markdown("classification-report", "# Text", "One sentence.")
    [warning] = caplog.messages
    assert all(words in warning for words in ("classification-report", "ConnectionError", "no server answers"))


def test_readers_of_the_table_do_not_see_the_report(store: ObjectStore, tmp_path: Path) -> None:
    batch = committed(store, classified(store, tmp_path / "scratch", loose(tmp_path / "in", 5)))
    write_reports(batch)
    snapshot = open_delta(store, table_folder("mine"))
    assert snapshot is not None
    rows = snapshot.dataset()
    assert duckdb.sql("SELECT count(*) FROM rows").fetchall() == [(5,)]
    assert rows.count_rows() == 5
    assert (list_tables(store), read_books(store, "mine")) == (["mine"], [batch.books])


# Committing


def test_commit_and_error_share_emit_events(
    store: ObjectStore, tmp_path: Path, events: list[tuple[str, str, dict[str, Any]]]
) -> None:
    batch = classified(store, tmp_path / "scratch", loose(tmp_path / "in", 4), broken=["1.png"])
    work = PlannedWork(plans=[batch.plan], model=model_version(1), done=DoneImages())
    books = commit_batches.fn(work, [batch])
    check_error_share.fn(books, 0.25)
    [(event, resource, payload)] = events
    assert (event, resource) == (BATCH_COMMITTED, "table.mine")
    assert payload == {
        "table": "mine",
        "batch": batch.plan.batch,
        "planned": 4,
        "predicted": 3,
        "quarantined": 1,
        "model_version": "1",
        "predictions": f"{store.root}/predictions/mine",
    }
    with pytest.raises(TooManyErrors) as error:
        check_error_share.fn(books, 0.2)
    quarantine = store.uri("quarantine/mine")
    assert all(words in str(error.value) for words in (batch.plan.batch, "1 of 4", "20%", quarantine))
    [_, (event, resource, payload)] = events
    assert (event, resource) == (BATCH_OVER_ERROR_SHARE, "table.mine")
    assert (payload["share"], payload["allowed"], payload["quarantine"]) == (0.25, 0.2, quarantine)


def test_error_share_applies_to_each_batch(
    store: ObjectStore, tmp_path: Path, events: list[tuple[str, str, dict[str, Any]]]
) -> None:
    scratch = tmp_path / "scratch"
    books = [
        committed(store, classified(store, scratch, loose(tmp_path / name, 4), broken=broken)).books
        for name, broken in {"a": [], "b": ["1.png"], "c": ["1.png", "2.png"]}.items()
    ]
    with pytest.raises(TooManyErrors) as error:
        check_error_share.fn(books, 0.1)
    assert [entry.batch in str(error.value) for entry in books] == [False, True, True]
    assert [payload["batch"] for _, _, payload in events] == [entry.batch for entry in books[1:]]


@pytest.mark.parametrize(("planned", "quarantined", "share"), [(100, 29, 0.29), (100, 57, 0.57), (3, 3, 1.0)])
def test_error_share_equal_to_the_limit_is_allowed(
    store: ObjectStore, tmp_path: Path, planned: int, quarantined: int, share: float
) -> None:
    books = committed(store, classified(store, tmp_path / "scratch", loose(tmp_path / "in", 1))).books
    changes = {"planned": planned, "quarantined": quarantined}
    check_error_share.fn([books.model_copy(update=changes)], share)
    with pytest.raises(TooManyErrors):
        check_error_share.fn([books.model_copy(update=changes)], share - 1e-9)


def gallery(store: ObjectStore, batch: Committed) -> list[ShownImage]:
    return show_least_confident(store, batch.classified.plan, batch.classified.records.values())


def test_markdown_contains_all_class_names() -> None:
    text = unescape(render_batch_markdown(BATCH, "file:///page"))
    assert all(f"| {name} |" in text for name in CLASS_NAMES)


def test_row_groups_with_a_small_gap_are_read_together() -> None:
    far = 9 * 2**20
    groups = [ContainerPiece(row, 10, row // 10, far if row == 40 else 1_000) for row in range(0, 80, 10)]
    reads = _join_near(groups, [5, 7, 25, 61])
    assert [[group.offset for group in read] for read in reads] == [[0, 1, 2], [6]]
