"""A shard's images are read in plan order, exactly as many as were planned, whatever happened to their files."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from fmnist_model.images.decode import decode_images
from infra.errors import RequestError
from infra.storage.input_files import InputsUnavailable, InputUnreadable
from infra.storage.tables.planning.plan import Piece
from infra.storage.uris import canonical_uri, percent_encode
from tasks.classification import read as reading
from tasks.classification.options import ReadOptions
from tasks.classification.read import ReadImages, read_shard
from tests.unit.tasks.classification.image_inputs import (
    OPTIONS,
    as_nobody,
    encode_idx,
    picture,
    plan_of,
    png,
    save_files,
    save_parquet,
    save_tar,
)


@dataclass(frozen=True)
class Found:
    """An image that was read and decoded."""

    uri: str
    pixels: NDArray[np.uint8] | None
    label: int | None
    reason: str | None
    """Reason for missing pixels."""


def found_in(batch: ReadImages) -> list[Found]:
    assert len(batch.images) == len(batch.encoded) == len(batch.labels)
    assert (batch.images.type, batch.labels.type) == (pa.string(), pa.int16())
    decoded = decode_images(batch.encoded)
    pixels = dict(zip(decoded.rows.tolist(), decoded.pixels, strict=True))
    reasons = dict(decoded.rejected) | batch.reasons
    assert pixels.keys() | reasons.keys() == set(range(len(batch.images)))
    assert pixels.keys().isdisjoint(reasons)
    columns = zip(batch.images.to_pylist(), batch.labels.to_pylist(), strict=True)
    return [Found(uri, pixels.get(row), label, reasons.get(row)) for row, (uri, label) in enumerate(columns)]


def read_plan(plan: pa.Table, options: ReadOptions = OPTIONS) -> list[Found]:
    """Read a shard, and check that it has every planned image once."""
    found = [image for batch in read_shard(plan, options) for image in found_in(batch)]
    assert len(found) == sum(plan.column("rows").to_pylist())
    assert len({image.uri for image in found}) == len(found)
    return found


def kinds_of_reasons(found: list[Found]) -> list[str | None]:
    """The kind of each reason, which is the text before the colon."""
    return [image.reason and image.reason.partition(":")[0] for image in found]


def save_list(folder: Path, *names: str) -> Path:
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    return folder / "list.txt"


# Names

ODD_NAMES = ["%41.png", "#row=3.png", "a?.png", "two\nlines.png", "del\x7f.png", "ü.png", "a b.png", "back\\slash.png"]


def test_files_of_any_name_are_read(tmp_path: Path):
    save_files(tmp_path, {name: png(number) for number, name in enumerate(ODD_NAMES)})
    found = {image.uri: image.pixels for image in read_plan(plan_of(tmp_path))}
    assert len(found) == len(ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        np.testing.assert_array_equal(found[canonical_uri(f"{tmp_path}/{name}")], picture(number))


def test_members_of_any_name_have_only_one_fragment(tmp_path: Path):
    folder = tmp_path / "#member=x"
    folder.mkdir()
    save_tar(folder / "100%25.tar", [(name, png(number)) for number, name in enumerate(ODD_NAMES)])
    found = read_plan(plan_of(tmp_path))
    assert [kind for kind in kinds_of_reasons(found) if kind] == []
    container = f"file://{tmp_path}/%23member=x/100%2525.tar"
    assert [image.uri for image in found] == [f"{container}#member={percent_encode(name)}" for name in ODD_NAMES]
    assert [urlsplit(image.uri).fragment for image in found] == [f"member={percent_encode(name)}" for name in ODD_NAMES]


@pytest.mark.parametrize("name", ["#1", "50%41?"])
def test_labels_beside_idx_images_of_any_name_are_found(tmp_path: Path, name: str):
    images = encode_idx(np.stack([picture(number) for number in range(2)]))
    labels = encode_idx(np.array([7, 3], np.uint8))
    save_files(tmp_path / name, {f"{name}-images-idx3-ubyte": images, f"{name}-labels-idx1-ubyte": labels})
    assert [image.label for image in read_plan(plan_of(tmp_path))] == [7, 3]


# Undamaged inputs


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of image files and containers with 14 images, which are pictures 0 to 13 in URI order."""
    folder = tmp_path / "inputs"
    save_files(folder, {"a.png": png(0), "c.png": png(4), "d d/größe #1.PNG": png(5), "z.png": png(13)})
    save_tar(folder / "b.tar", [("x/1.png", png(1)), ("x/1.cls", b"7"), ("x/2.png", png(2)), ("x/3.png", png(3))])
    save_parquet(folder / "e.parquet", [png(6), png(7), png(8), png(9)], [6, 7, None, 9], group=3)
    images, labels = np.stack([picture(10), picture(11), picture(12)]), np.array([0, 1, 2], np.uint8)
    save_files(folder, {"f-images-idx3-ubyte": encode_idx(images), "f-labels-idx1-ubyte": encode_idx(labels)})
    return folder


NAMES = [
    "a.png",
    "b.tar#member=x/1.png",
    "b.tar#member=x/2.png",
    "b.tar#member=x/3.png",
    "c.png",
    "d d/größe %231.PNG",
    *(f"e.parquet#row={row}" for row in range(4)),
    *(f"f-images-idx3-ubyte#row={row}" for row in range(3)),
    "z.png",
]


@pytest.fixture(params=[4096, 2, 1], ids=lambda rows: f"batches of {rows}")
def batch_images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(reading, "BATCH_IMAGES", request.param)
    rows: int = request.param
    return rows


def test_images_are_read_in_plan_order(inputs: Path, batch_images: int):
    found = read_plan(plan_of(inputs))
    assert [image.uri for image in found] == [f"file://{inputs}/{name}" for name in NAMES]


def test_each_image_has_its_own_pixels(inputs: Path, batch_images: int):
    for number, image in enumerate(read_plan(plan_of(inputs))):
        np.testing.assert_array_equal(image.pixels, picture(number))


def test_each_image_has_its_own_label(inputs: Path, batch_images: int):
    labels = [image.label for image in read_plan(plan_of(inputs))]
    assert labels == [None, 7, None, None, None, None, 6, 7, None, 9, 0, 1, 2, None]


def test_no_batch_exceeds_the_maximum(inputs: Path, batch_images: int):
    assert all(len(batch.images) <= batch_images for batch in read_shard(plan_of(inputs), OPTIONS))


def test_part_of_a_plan_reads_only_its_images(inputs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.classification.containers._PIECE_IMAGES", 1)
    plan = plan_of(inputs)
    assert len(plan) == len(NAMES)
    for row in range(len(plan)):
        assert [image.uri for image in read_plan(plan.slice(row, 1))] == [f"file://{inputs}/{NAMES[row]}"]


def test_labels_in_a_list_stay_with_their_images(tmp_path: Path):
    save_files(tmp_path, {"a.png": png(0), "b.png": png(1)})
    (tmp_path / "list.csv").write_text("uri,label\nb.png,8\na.png,\nnowhere.png,3\n")
    found = read_plan(plan_of(tmp_path / "list.csv"))
    assert [(image.uri.rpartition("/")[2], image.label) for image in found] == [
        ("a.png", None),
        ("b.png", 8),
        ("nowhere.png", 3),
    ]


def test_named_columns_are_read(tmp_path: Path):
    import pyarrow.parquet as pq

    columns = {"image": [png(0)], "other": [png(1)], "label": [0], "truth": [5]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    options = ReadOptions(image_column="other", label_column="truth")
    [image] = read_plan(plan_of(tmp_path / "a.parquet", options=options), options)
    np.testing.assert_array_equal(image.pixels, picture(1))
    assert image.label == 5


# Memory


def test_batch_of_files_ends_before_it_has_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = [300, 300, 300, 300, 1, 2000, 300, 900, 50, 50]
    save_files(tmp_path, {f"{number}.png": bytes(size) for number, size in enumerate(sizes)})
    monkeypatch.setattr(reading, "_BATCH_BYTES", 1000)
    batches = [[len(data) for data in batch.encoded.to_pylist()] for batch in read_shard(plan_of(tmp_path), OPTIONS)]
    assert batches == [[300, 300, 300], [300, 1], [2000], [300], [900, 50, 50]]


@pytest.mark.parametrize("kind", ["tar", "parquet", "idx", "tar.gz", "idx.gz"])
def test_images_of_a_vanished_container_come_in_batches_too(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    path = save_container(tmp_path / "in", kind)
    plan = plan_of(path)
    path.unlink()
    monkeypatch.setattr(reading, "BATCH_IMAGES", 2)
    assert [len(batch.images) for batch in read_shard(plan, OPTIONS)] == [2, 2, 2]


def test_files_are_read_one_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_files(tmp_path, {f"{number}.png": b"x" for number in range(100)})
    monkeypatch.setattr(reading, "BATCH_IMAGES", 10)
    read: list[str] = []
    read_input = reading.read_input
    monkeypatch.setattr(reading, "read_input", lambda uri, *others: (read.append(uri), read_input(uri, *others))[1])
    batches = read_shard(plan_of(tmp_path), OPTIONS)
    next(batches)
    assert len(read) == 10


# Unreadable files


def reason_of_second(plan: pa.Table) -> str:
    """The reason of the second of three images. The others are readable."""
    first, second, third = read_plan(plan)
    np.testing.assert_array_equal(first.pixels, picture(0))
    np.testing.assert_array_equal(third.pixels, picture(2))
    assert second.reason is not None
    return second.reason


@pytest.fixture
def three(tmp_path: Path) -> Path:
    save_files(tmp_path / "three", {f"{number}.png": png(number) for number in range(3)})
    return tmp_path / "three"


def test_vanished_file_has_a_reason(three: Path):
    plan = plan_of(three)
    (three / "1.png").unlink()
    assert reason_of_second(plan).startswith("vanished: ")


def test_file_whose_folder_became_a_file_has_vanished(tmp_path: Path):
    save_files(tmp_path / "in", {"0.png": png(0), "1/1.png": png(1), "2.png": png(2)})
    plan = plan_of(tmp_path / "in")
    (tmp_path / "in/1/1.png").unlink()
    (tmp_path / "in/1").rmdir()
    (tmp_path / "in/1").touch()
    assert reason_of_second(plan).startswith("vanished: ")


@pytest.mark.parametrize("data", [b"longer than before " * 100, b""], ids=["longer", "empty"])
def test_changed_file_has_a_reason(three: Path, data: bytes):
    plan = plan_of(three)
    (three / "1.png").write_bytes(data)
    assert reason_of_second(plan).startswith("changed: ")


def test_rewritten_file_counts_as_changed(three: Path):
    plan = plan_of(three)
    os.utime(three / "1.png", ns=(1, 1))
    assert reason_of_second(plan).startswith("changed: ")


def test_file_without_read_permission_has_a_reason(open_folder: Path):
    save_files(open_folder, {f"{number}.png": png(number) for number in range(3)})
    plan = plan_of(open_folder)
    (open_folder / "1.png").chmod(0)
    with as_nobody():
        assert reason_of_second(plan).startswith("permission: ")


def test_file_in_a_folder_without_permission_has_a_reason(open_folder: Path):
    save_files(open_folder, {"0.png": png(0), "1/1.png": png(1), "2.png": png(2)})
    plan = plan_of(open_folder)
    (open_folder / "1").chmod(0)
    with as_nobody():
        assert reason_of_second(plan).startswith("permission: ")


def test_reason_of_a_too_large_file_has_its_size(three: Path, monkeypatch: pytest.MonkeyPatch):
    save_files(three, {"1.png": bytes(12_345)})
    plan = plan_of(three)
    monkeypatch.setattr(reading, "_MAX_FILE_BYTES", 5000)
    reason = reason_of_second(plan)
    assert reason.startswith("too large: ")
    assert "12,345" in reason


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_pipe_or_folder_has_a_reason(three: Path, make: Callable[[Path], None]):
    (three / "1.png").unlink()
    make(three / "1.png")
    assert reason_of_second(plan_of(save_list(three, "0.png", "1.png", "2.png"))).startswith("unreadable: ")


def test_file_that_became_a_pipe_does_not_block(three: Path):
    plan = plan_of(three)
    (three / "1.png").unlink()
    os.mkfifo(three / "1.png")
    assert reason_of_second(plan).startswith("unreadable: ")


def test_folders_in_a_list_are_not_left_open(three: Path):
    (three / "folder.png").mkdir()
    plan = plan_of(save_list(three, "folder.png"))
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (Path.iterdir opens another descriptor)
    for _ in range(5):
        read_plan(plan)
    assert len(os.listdir("/proc/self/fd")) == opened  # noqa: PTH208


def test_circular_link_has_a_reason(three: Path):
    plan = plan_of(three)
    (three / "1.png").unlink()
    (three / "1.png").symlink_to("1.png")
    assert reason_of_second(plan).startswith("unreadable: ")


def test_missing_entry_of_a_list_has_a_reason(three: Path):
    plan = plan_of(save_list(three, "0.png", "1a.png", "2.png"))
    assert reason_of_second(plan).startswith("vanished: ")


def test_entry_that_appears_after_planning_is_left_for_the_next_run(three: Path):
    plan = plan_of(save_list(three, "0.png", "1a.png", "2.png"))
    save_files(three, {"1a.png": png(1)})
    assert reason_of_second(plan).startswith("vanished: ")


def test_reason_of_an_entry_with_an_unsupported_scheme_names_it(three: Path):
    plan = plan_of(save_list(three, "0.png", "gs://bucket/1.png"))
    [_, image] = read_plan(plan)
    assert image.reason is not None
    assert image.reason.startswith("unsupported: ")
    assert "gs:" in image.reason


def test_empty_file_is_not_an_image(three: Path):
    save_files(three, {"1.png": b""})
    assert reason_of_second(plan_of(three)).startswith("not an image: ")


# Unreadable containers

CONTAINERS = ["tar", "parquet", "idx", "tar.gz", "idx.gz"]


def save_container(folder: Path, kind: str, numbers: range = range(6)) -> Path:
    """Write a container between two image files with the pictures 100 and 101."""
    import gzip

    save_files(folder, {"a.png": png(100), "z.png": png(101)})
    path = folder / {"tar": "b.tar", "parquet": "b.parquet", "idx": "b.idx", "tar.gz": "b.tgz"}.get(kind, "b.idx.gz")
    if kind == "parquet":
        save_parquet(path, [png(number) for number in numbers], group=2)
    elif kind.startswith("idx"):
        path.write_bytes(encode_idx(np.stack([picture(number) for number in numbers])))
    else:
        save_tar(path, [(f"{number}.png", png(number)) for number in numbers])
    if kind.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return path


def reasons_of_container(plan: pa.Table) -> set[str | None]:
    """The kinds of reasons of the images in a container. The two image files around it are readable."""
    first, *found, last = read_plan(plan)
    np.testing.assert_array_equal(first.pixels, picture(100))
    np.testing.assert_array_equal(last.pixels, picture(101))
    return set(kinds_of_reasons(found))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_image_of_a_vanished_container_has_a_reason(tmp_path: Path, kind: str):
    path = save_container(tmp_path / "in", kind)
    plan = plan_of(tmp_path / "in")
    path.unlink()
    assert reasons_of_container(plan) == {"vanished"}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_image_of_a_replaced_container_has_a_reason(tmp_path: Path, kind: str):
    path = save_container(tmp_path / "in", kind)
    plan = plan_of(path)
    path.unlink()
    save_container(tmp_path / "in", kind, range(10, 18))
    assert set(kinds_of_reasons(read_plan(plan))) == {"changed"}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_image_of_a_truncated_container_has_a_reason(tmp_path: Path, kind: str):
    path = save_container(tmp_path / "in", kind)
    plan = plan_of(tmp_path / "in")
    os.truncate(path, path.stat().st_size // 2)
    assert reasons_of_container(plan) == {"changed"}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_images_of_a_vanished_container_have_its_uri(tmp_path: Path, kind: str):
    path = save_container(tmp_path / "in", kind)
    plan = plan_of(path)
    path.unlink()
    assert [image.uri for image in read_plan(plan)] == [f"file://{path}#row={row}" for row in range(6)]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_image_of_a_container_without_read_permission_has_a_reason(open_folder: Path, kind: str):
    path = save_container(open_folder, kind)
    plan = plan_of(open_folder)
    path.chmod(0)
    with as_nobody():
        assert reasons_of_container(plan) == {"permission"}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_image_of_a_container_in_a_folder_without_permission_has_a_reason(open_folder: Path, kind: str):
    plan = plan_of(save_container(open_folder / "closed", kind))
    (open_folder / "closed").chmod(0)
    with as_nobody():
        assert set(kinds_of_reasons(read_plan(plan))) == {"permission"}


@pytest.mark.parametrize("name", ["b.tar", "b.parquet", "b.tgz", "b.idx.gz", "b[1] {x}.tar"])
def test_container_that_could_not_be_planned_is_one_unreadable_image(tmp_path: Path, name: str):
    save_files(tmp_path / "in", {"a.png": png(100), name: b"nonsense" * 100, "z.png": png(101)})
    _, container, _ = read_plan(plan_of(tmp_path / "in"))
    assert container.uri == f"file://{tmp_path}/in/{name}"
    assert kinds_of_reasons([container]) == ["unreadable"]


def test_container_that_could_not_be_planned_and_vanished_has_a_reason(tmp_path: Path):
    save_files(tmp_path / "in", {"a.png": png(100), "b.tar": b"nonsense" * 100, "z.png": png(101)})
    plan = plan_of(tmp_path / "in")
    (tmp_path / "in/b.tar").unlink()
    assert reasons_of_container(plan) == {"vanished"}


def test_container_repaired_after_planning_is_left_for_the_next_run(tmp_path: Path):
    save_files(tmp_path / "in", {"a.png": png(100), "b.tar": b"nonsense" * 100, "z.png": png(101)})
    plan = plan_of(tmp_path / "in")
    save_container(tmp_path / "in", "tar")
    save_files(tmp_path / "in", {"a.png": png(100)})
    found = read_plan(plan)
    assert kinds_of_reasons(found[1:-1]) == ["changed"]


def test_container_without_read_permission_when_planned_has_a_reason(open_folder: Path):
    save_container(open_folder, "tar").chmod(0)
    with as_nobody():
        assert reasons_of_container(plan_of(open_folder)) == {"permission"}


def test_damaged_member_of_a_tar_has_a_reason_under_its_own_uri(tmp_path: Path):
    save_tar(tmp_path / "b.tar", [("1.png", png(0)), ("2.png", b"not an image"), ("3.png", png(2))])
    plan = plan_of(tmp_path / "b.tar")
    assert reason_of_second(plan).startswith("not an image: ")
    assert read_plan(plan)[1].uri == f"file://{tmp_path}/b.tar#member=2.png"


def test_null_in_a_parquet_file_has_a_reason(tmp_path: Path):
    save_parquet(tmp_path / "b.parquet", [png(0), None, png(2)])
    assert reason_of_second(plan_of(tmp_path / "b.parquet")).startswith("missing: ")


def test_unexpected_exception_in_one_file_leaves_the_others(three: Path, monkeypatch: pytest.MonkeyPatch):
    read = reading.read_input

    def fail_for_one(uri: str, fingerprint: str, largest: int) -> bytes:
        if uri.endswith("/1.png"):
            raise KeyError(uri)
        return read(uri, fingerprint, largest)

    monkeypatch.setattr(reading, "read_input", fail_for_one)
    assert reason_of_second(plan_of(three)).startswith("damaged: KeyError")


def test_unexpected_exception_in_a_container_leaves_the_images_read_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_tar(tmp_path / "a.tar", [("1.png", png(0)), ("2.png", png(1))])
    save_files(tmp_path, {"b.png": png(2)})
    plan = plan_of(tmp_path)
    read = reading.read

    def fail_after_one(*arguments: Any, **options: Any) -> Any:
        yield next(read(*arguments, **options | {"batch_rows": 1}))
        raise RecursionError

    monkeypatch.setattr(reading, "read", fail_after_one)
    assert kinds_of_reasons(read_plan(plan)) == [None, "damaged", None]


@pytest.mark.parametrize(
    "error",
    [
        RequestError("no credentials"),
        InputsUnavailable("S3 doesn't answer"),
        ConnectionResetError("connection reset"),
        OSError(errno.EMFILE, "too many open files"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("reader", ["read_input", "read"])
def test_store_failure_fails_the_shard(tmp_path: Path, reader: str, error: Exception, monkeypatch: pytest.MonkeyPatch):
    save_tar(tmp_path / "a.tar", [("1.png", png(0))])
    save_files(tmp_path, {"b.png": png(2)})
    plan = plan_of(tmp_path)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(reading, reader, fail)
    expected = InputsUnavailable if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        read_plan(plan)
    assert str(tmp_path) in " ".join([str(raised.value), *getattr(raised.value, "__notes__", [])])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("zstd decompression failed"), "damaged"),
        (OSError(errno.EIO, "Input/output error"), "unreadable"),
        (MemoryError(), "damaged"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("reader", ["read_input", "read"])
def test_failure_of_one_file_leaves_the_others(
    tmp_path: Path, reader: str, error: Exception, kind: str, monkeypatch: pytest.MonkeyPatch
):
    save_tar(tmp_path / "a.tar", [("1.png", png(0))])
    save_files(tmp_path, {"b.png": png(2)})
    plan = plan_of(tmp_path)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(reading, reader, fail)
    reasons = dict(zip(("read", "read_input"), kinds_of_reasons(read_plan(plan)), strict=True))
    assert reasons.pop(reader) == kind
    assert list(reasons.values()) == [None]


class FailingFile(pa.PythonFile):  # type: ignore[misc]
    """A file on S3, as a reader of Parquet sees it: its error arrives as one of pyarrow's."""

    def __init__(self, _: object) -> None:
        self.failure: Exception | None = None

    def fail_from_now_on(self, failure: Exception) -> None:
        self.failure = failure


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(InputsUnavailable("S3 doesn't answer"), None), (InputUnreadable("archived: it is in GLACIER"), "archived")],
    ids=repr,
)
def test_error_that_a_file_remembers_counts(
    tmp_path: Path, failure: Exception, reason: str | None, monkeypatch: pytest.MonkeyPatch
):
    path = save_parquet(tmp_path / "a.parquet", [png(0), png(1)])
    plan = plan_of(path)

    def fail(_: str, file: FailingFile, *arguments: Any, **options: Any) -> Any:
        file.fail_from_now_on(failure)
        raise OSError("pyarrow's text")

    monkeypatch.setattr("tasks.classification.containers.open_input", lambda *_, **__: FailingFile(path.open("rb")))
    monkeypatch.setattr(reading, "read", fail)
    if reason is None:
        with pytest.raises(type(failure)):
            read_plan(plan)
    else:
        assert kinds_of_reasons(read_plan(plan)) == [reason, reason]


# Containers that change while they are read


def after_the_check(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]) -> None:
    """Change a container after its version is checked and before it is read."""
    check = reading.check_version

    def check_and_change(piece: Piece) -> None:
        check(piece)
        change()

    monkeypatch.setattr(reading, "check_version", check_and_change)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_container_truncated_while_it_is_read_is_damaged(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    path = save_container(tmp_path / "in", kind)
    plan = plan_of(tmp_path / "in")
    half = path.stat().st_size // 2
    after_the_check(monkeypatch, lambda: os.truncate(path, half))
    first, *found, last = read_plan(plan)
    assert [kinds_of_reasons([image]) for image in (first, found[-1], last)] == [[None], ["damaged"], [None]]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_image_of_a_container_that_vanishes_while_it_is_read_has_a_reason(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    path = save_container(tmp_path / "in", kind)
    plan = plan_of(tmp_path / "in")
    after_the_check(monkeypatch, path.unlink)
    assert reasons_of_container(plan) == {"vanished"}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("count", [1, 3, 12])
def test_container_replaced_while_it_is_read_has_as_many_images_as_planned(
    tmp_path: Path, kind: str, count: int, monkeypatch: pytest.MonkeyPatch
):
    path = save_container(tmp_path / "in", kind)
    plan = plan_of(path)
    after_the_check(monkeypatch, lambda: save_container(tmp_path / "in", kind, range(50, 50 + count)))
    read_plan(plan)


def test_tar_replaced_by_one_with_larger_samples_has_as_many_images_as_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save_tar(tmp_path / "b.tar", [("1.png", png(0))])
    plan = plan_of(path)
    members = [(f"1.{number}.png", png(number)) for number in range(5)]
    after_the_check(monkeypatch, lambda: save_tar(path, members))
    read_plan(plan)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_container_with_damaged_bytes_has_as_many_images_as_planned(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    path = save_container(tmp_path / "in", kind)
    plan, whole = plan_of(path), path.read_bytes()
    monkeypatch.setattr(reading, "check_version", lambda _: None)
    chance = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for position in chance.integers(0, len(whole), chance.integers(1, 4)):
            damaged[position] = chance.integers(0, 256)
        path.write_bytes(damaged[: chance.integers(1, len(whole) + 1)] if chance.random() < 0.3 else damaged)
        read_plan(plan)
