"""Classify all kinds of inputs in one run, many of them broken. Every image must appear exactly once."""

import gzip
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows.parameters import ClassifyParameters
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.object_store import open_store
from infra.storage.tables.books import BatchBooks, read_books
from infra.storage.tables.delta import open_delta
from infra.storage.uris import percent_encode
from tests.unit.tasks.classification.image_inputs import encode_idx, picture, save_files, save_tar
from tests.unit.tasks.training.test_report import Page

TABLE = "mixed"

PICTURES = [picture(number) // 4 for number in range(40)]
"""Pictures that each appear in one place. The first appears in every lossless kind of file."""

EVERYWHERE = ["loose/0 größe %231 50%25%3F.png", "loose/plain.bmp", "loose/x/y/first.TIFF", "a.tar#member=0.png"]
EVERYWHERE += [
    f"{name}#row=0" for name in ("files.parquet", "structs.parquet", "pixels.parquet", "train-images-idx3-ubyte.gz")
]


@dataclass(frozen=True)
class Expected:
    """Expected result for one image."""

    label: int | None = None
    reason: str | None = None
    """Kind of the quarantine reason. None for an image that can be classified."""


def save(folder: Path, name: str, pixels: NDArray[np.uint8]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    from fmnist_model.images.decode import encode_png

    return encode_png(pixels)


def bomb() -> bytes:
    """Make a PNG file with 50,000 x 50,000 black pixels in 300 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj()
    row = bytes(1 + 50_000 // 8)
    pixels = b"".join(compressor.compress(row * 1000) for _ in range(50)) + compressor.flush()
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def save_loose(folder: Path) -> dict[str, Expected]:
    """Save images in many formats under difficult names, among other files."""
    images: dict[str, NDArray[np.uint8]] = {
        "loose/0 größe #1 50%?.png": PICTURES[0],
        "loose/plain.bmp": PICTURES[0],
        "loose/x/y/first.TIFF": PICTURES[0],
        "loose/图像.PNG": PICTURES[1],
        "loose/two words.JPG": PICTURES[2],
        "loose/x/it's.jpeg": PICTURES[3],
        "loose/x/a.webp": PICTURES[4],
        "loose/x/y/z/b.GIF": PICTURES[5],
        "loose/large.png": np.kron(PICTURES[6], np.ones((10, 7), np.uint8)),
        "loose/colour.png": np.stack([PICTURES[7]] * 3, axis=-1),
    }
    for name, pixels in images.items():
        save(folder, name, pixels)
    save_files(folder, {"loose/README.txt": b"no list", "loose/.hidden.png": b"", "loose/notes.csv": b"uri\nx.png"})
    return dict.fromkeys(map(percent_encode, images), Expected())


def save_unusual(folder: Path) -> dict[str, Expected]:
    """Save images under names that others pass over, among entries that can't be used."""
    save(folder, "unusual/_DSC0001.JPG", PICTURES[18])
    save(folder, "unusual/_selected/_MG_0002.JPG", PICTURES[19])
    save_files(folder, {"unusual/no ending": encoded(PICTURES[21]), "unusual/text": b"no picture"})
    save_files(folder, {"unusual/c.HEIC": b"no picture", "unusual/notes.docx": b"", "unusual/_SUCCESS": b""})
    (folder / "unusual/myself").symlink_to("myself")
    names = ("_DSC0001.JPG", "_selected/_MG_0002.JPG", "no ending")
    return {f"unusual/{name}": Expected() for name in names} | {"unusual/text": Expected(reason="not an image")}


PASSED_OVER = {".heic": 1, ".csv": 1, ".docx": 1, ".txt": 1, "hidden file": 1, "looping link": 1, "metadata file": 1}
"""What the inputs hold apart from images, by kind."""


def save_containers(folder: Path) -> dict[str, Expected]:
    """Save a tar, a gzipped pair of IDX files, and Parquet files in three layouts."""
    expected = {}
    members = [
        ("0.png", encoded(PICTURES[0])),
        ("0.cls", b"9"),
        ("x/1 größe.png", encoded(PICTURES[8])),
        ("x/readme.md", b""),
    ]
    save_tar(folder / "a.tar", [*members, ("x/2.png", b"no picture")])
    expected |= {"a.tar#member=0.png": Expected(9), "a.tar#member=x/1 größe.png": Expected()}
    expected |= {"a.tar#member=x/2.png": Expected(reason="not an image")}

    images, labels = np.stack([PICTURES[0], PICTURES[9], PICTURES[10]]), np.array([3, 0, 9], np.uint8)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(encode_idx(images)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encode_idx(labels)))
    expected |= {f"train-images-idx3-ubyte.gz#row={row}": Expected(label) for row, label in enumerate([3, 0, 9])}

    files = [encoded(PICTURES[number]) for number in (0, 11)]
    pq.write_table(pa.table({"image": [*files, None], "label": [4, 5, 6]}), folder / "files.parquet")
    expected |= {"files.parquet#row=0": Expected(4), "files.parquet#row=1": Expected(5)}
    expected |= {"files.parquet#row=2": Expected(6, "missing")}

    structs = [{"bytes": encoded(PICTURES[number]), "path": "x.png"} for number in (0, 12, 13)]
    pq.write_table(
        pa.table({"image": structs, "label": ["Bag", None, "Coat"]}), folder / "structs.parquet", row_group_size=2
    )
    expected |= {f"structs.parquet#row={row}": Expected(label) for row, label in enumerate([8, None, 4])}

    pixels = pa.array([PICTURES[number].tobytes() for number in (0, 14)], pa.binary(784))
    pq.write_table(pa.table({"pixels": pixels}), folder / "pixels.parquet")
    return expected | {f"pixels.parquet#row={row}": Expected() for row in range(2)}


def save_broken(folder: Path) -> dict[str, Expected]:
    whole = encoded(PICTURES[15])
    broken = {
        "empty.png": (b"", "not an image"),
        "text.jpg": (b"no picture", "not an image"),
        "truncated.png": (whole[:-40], "truncated"),
        "bomb.png": (bomb(), "too large"),
        "broken.tar": (b"no tar" * 500, "unreadable"),
        "broken.parquet": (b"PAR1 no Parquet PAR1", "unreadable"),
        "broken-images-idx3-ubyte": (b"\0\0\x08\x03\0\0\0\x09", "unreadable"),
    }
    save_files(folder / "broken", {name: data for name, (data, _) in broken.items()})
    return {f"broken/{name}": Expected(reason=reason) for name, (_, reason) in broken.items()}


def save_list(folder: Path) -> dict[str, Expected]:
    """Save a list of images in another folder, of a missing image, and of an image that is also in the inputs."""
    save(folder, "elsewhere/16.png", PICTURES[16])
    save(folder, "elsewhere/17.png", PICTURES[17])
    save_files(folder, {"elsewhere/broken.png": b"no picture"})
    rows = [
        ("16.png", "2"),
        (f"file://{folder}/elsewhere/17.png", "Trouser"),
        ("broken.png", "6"),
        ("missing.png", "7"),
    ]
    rows += [("../inputs/loose/图像.PNG", "1"), ("16.png", "2")]
    lines = ["uri,label", *(",".join(row) for row in rows)]
    (folder / "elsewhere/list.csv").write_text("\n".join(lines), encoding="utf-8")
    return {
        "elsewhere/16.png": Expected(2),
        "elsewhere/17.png": Expected(1),
        "elsewhere/broken.png": Expected(6, "not an image"),
        "elsewhere/missing.png": Expected(7, "vanished"),
        "inputs/loose/图像.PNG": Expected(1),
    }


@dataclass(frozen=True)
class Runs:
    """Three runs over the same inputs. The third one has one more file."""

    folder: Path
    """Folder that contains `inputs`, and `elsewhere/list.csv` with its images."""
    expected: dict[str, Expected]
    """Expected results of the first run, by URI."""
    first: Any
    again: Any
    with_another: Any
    store: str
    """Root of the store."""

    @property
    def batch(self) -> BatchBooks:
        """The batch of the first run."""
        [books] = self.first.batches
        found: BatchBooks = books
        return found

    def predictions(self, *batches: BatchBooks) -> Any:
        """Return predictions as an Arrow dataset: those of some batches, or of the first."""
        return self._rows(table_folder(TABLE), batches)

    def quarantine(self, *batches: BatchBooks) -> Any:
        """Return quarantined images as an Arrow dataset: those of some batches, or of the first."""
        return self._rows(quarantine_folder(TABLE), batches)

    def _rows(self, folder: str, batches: Sequence[BatchBooks]) -> Any:
        snapshot = open_delta(open_store(self.store), folder)
        assert snapshot is not None
        return snapshot.dataset([books.batch for books in batches or [self.batch]])

    def uris(self, names: Sequence[str]) -> list[str]:
        return [f"file://{self.folder}/inputs/{name}" for name in names]


@pytest.fixture(scope="module")
def runs(main_job: Any, session_store: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from flows.classify import classify

    folder = tmp_path_factory.mktemp("classification")
    inputs = folder / "inputs"
    inputs.mkdir()
    inside = save_loose(inputs) | save_unusual(inputs) | save_containers(inputs) | save_broken(inputs)
    expected = {f"file://{inputs}/{name}": image for name, image in inside.items()}
    expected |= {f"file://{folder}/{name}": image for name, image in save_list(folder).items()}
    parameters = ClassifyParameters(
        inputs=[str(inputs), str(folder / "elsewhere/list.csv")], table=TABLE, max_error_share=1
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("infra.storage.tables.planning.plan.SMALLEST_SHARD", 20)
        first, again = classify(parameters), classify(parameters)
        save(inputs, "loose/new.png", PICTURES[20])
        with_another = classify(parameters)
    return Runs(folder, expected, first, again, with_another, session_store)


# The first run


def labels(rows: Any) -> dict[str, int | None]:
    """Return the label of each image."""
    return {row["image"]: row["label"] for row in rows.to_table(columns=["image", "label"]).to_pylist()}


def test_every_image_is_there_exactly_once(runs: Runs) -> None:
    found = [
        image
        for rows in (runs.predictions(), runs.quarantine())
        for image in rows.to_table(columns=["image"]).column("image").to_pylist()
    ]
    assert Counter(found) == Counter(list(runs.expected))


def test_classified_image_keeps_its_label(runs: Runs) -> None:
    expected = {uri: image.label for uri, image in runs.expected.items() if image.reason is None}
    assert labels(runs.predictions()) == expected


def test_undecodable_image_is_quarantined_with_its_reason(runs: Runs) -> None:
    rows = runs.quarantine().to_table(columns=["image", "reason_kind", "reason"]).to_pylist()
    expected = {uri: image.reason for uri, image in runs.expected.items() if image.reason is not None}
    assert {row["image"]: row["reason_kind"] for row in rows} == expected
    assert all(row["reason"].startswith(row["reason_kind"]) for row in rows)


def test_image_that_may_appear_later_is_retryable(runs: Runs) -> None:
    rows = runs.quarantine().to_table(columns=["reason_kind", "retryable"]).to_pylist()
    retryable = {row["reason_kind"] for row in rows if row["retryable"]}
    assert "vanished" in retryable
    assert retryable.isdisjoint({"not an image", "truncated", "too large", "missing"})


def test_quarantined_image_keeps_its_label(runs: Runs) -> None:
    expected = {uri: image.label for uri, image in runs.expected.items() if image.reason is not None}
    assert labels(runs.quarantine()) == expected


def test_images_are_divided_into_many_shards(runs: Runs) -> None:
    assert runs.batch.shards > 5


def test_books_agree_with_the_parts(runs: Runs) -> None:
    quarantined = sum(image.reason is not None for image in runs.expected.values())
    found = (runs.batch.planned, runs.batch.predicted, runs.batch.quarantined)
    assert found == (len(runs.expected), len(runs.expected) - quarantined, quarantined)


def test_books_count_every_quarantined_image_by_its_reason(runs: Runs) -> None:
    counted: Counter[str] = Counter()
    for reason in runs.batch.reasons:
        counted[reason.kind] += reason.images
    assert counted == Counter(image.reason for image in runs.expected.values() if image.reason is not None)


def test_same_picture_gets_the_same_prediction_from_every_kind_of_file(runs: Runs) -> None:
    everywhere, predictions = runs.uris(EVERYWHERE), runs.predictions()
    with duckdb.connect() as connection:
        connection.register("predictions", predictions)
        query = "SELECT image, probabilities FROM predictions WHERE list_contains(?, image)"
        rows = connection.execute(query, [everywhere]).fetchall()
    assert sorted(image for image, _ in rows) == sorted(everywhere)
    for _, probabilities in rows:
        assert probabilities == pytest.approx(rows[0][1], abs=1e-6)


@pytest.mark.parametrize("rows_of", [Runs.predictions, Runs.quarantine], ids=["predictions", "quarantine"])
def test_rows_name_the_requested_model_version(runs: Runs, rows_of: Callable[[Runs], Any]) -> None:
    versions = rows_of(runs).to_table(columns=["model_version"]).column("model_version").unique().to_pylist()
    assert versions == [f"{runs.first.work.model.version}"]


def test_parts_record_the_weights(runs: Runs) -> None:
    [path, *_] = runs.predictions().files
    metadata = pq.read_metadata(f"{runs.store.removeprefix('file://')}/{table_folder(TABLE)}/{path}").metadata
    assert metadata[b"weights_sha256"].decode() == runs.first.work.model.weights_sha256


@pytest.mark.parametrize("run", ["first", "again", "with_another"])
def test_each_run_counts_what_it_passes_over(runs: Runs, run: str) -> None:
    assert getattr(runs, run).work.passed_over.to_record() == PASSED_OVER


def test_report_shows_what_was_passed_over(runs: Runs) -> None:
    [uri] = runs.first.reports
    page = Page(Path(uri.removeprefix("file://")).read_text(encoding="utf-8"))
    rows = {kind: (int(count), example) for kind, count, example in page.rows("Passed over by kind")[1:]}
    assert {kind: count for kind, (count, _) in rows.items()} == PASSED_OVER
    assert rows[".heic"][1] == f"{runs.folder}/inputs/unusual/c.HEIC"


# Later runs


def test_second_run_finds_nothing_new(runs: Runs) -> None:
    assert (runs.again.batches, runs.again.work.plans) == ([], [])


def test_second_run_counts_the_images_that_are_done(runs: Runs) -> None:
    assert runs.again.work.done.images == len(runs.expected)


def test_only_the_new_file_becomes_a_batch(runs: Runs) -> None:
    [books] = runs.with_another.batches
    assert (books.planned, list(labels(runs.predictions(books)))) == (1, runs.uris(["loose/new.png"]))


def test_batches_are_committed_in_the_order_of_the_runs(runs: Runs, session_store: str) -> None:
    committed = read_books(open_store(session_store), TABLE)
    assert committed == [*runs.first.batches, *runs.with_another.batches]
    assert [books.number for books in committed] == [1, 2]


def test_table_holds_the_rows_of_all_batches(runs: Runs) -> None:
    expected = [uri for uri, image in runs.expected.items() if image.reason is None]
    rows = runs.predictions(*runs.first.batches, *runs.with_another.batches)
    assert sorted(labels(rows)) == sorted([*expected, *runs.uris(["loose/new.png"])])
