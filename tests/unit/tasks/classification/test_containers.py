"""Containers as people have them: with sidecars, odd labels, paths and damage. Nothing in one stops the others."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.errors import InvalidDataset, NoImages
from fmnist_model.images.decode import decode_images
from infra.errors import RequestError
from infra.storage.tables.planning.plan import Piece
from tasks.classification import container_paths, containers
from tasks.classification.inputs import check_inputs, list_files, pieces_of
from tasks.classification.passed_over import PassedOver
from tasks.classification.read import read_shard
from tests.unit.tasks.classification.image_inputs import (
    OPTIONS,
    encode_idx,
    picture,
    plan_of,
    png,
    save_files,
    save_parquet,
    save_tar,
)

PATHS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def classify(*locations: str | Path) -> tuple[dict[str, int | None], dict[str, str]]:
    """Plan, read and decode. Return the label of each decoded image and the reason of each other, by name."""
    plan = plan_of(*locations)
    labels: dict[str, int | None] = {}
    reasons: dict[str, str] = {}
    for batch in read_shard(plan, OPTIONS):
        decoded = decode_images(batch.encoded)
        names = [uri.rpartition("/")[2] for uri in batch.images.to_pylist()]
        labels |= {names[row]: batch.labels[row].as_py() for row in decoded.rows.tolist()}
        reasons |= {names[row]: batch.reasons.get(row, reason) for row, reason in decoded.rejected}
    assert len(labels) + len(reasons) == sum(plan.column("rows").to_pylist())
    return labels, reasons


def passed_over(*locations: str | Path) -> dict[str, int]:
    counts = PassedOver()
    for _ in pieces_of(list_files(map(str, locations), OPTIONS, counts), OPTIONS, counts):
        pass
    return counts.to_record()


def save_table(to: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), to)
    return to


# Sidecars


def save_shard(folder: Path, name: str, images: int) -> None:
    """Write a tar as img2dataset does, with its metadata and DALI's index."""
    save_tar(folder / f"{name}.tar", [(f"{number:09}.png", png(number)) for number in range(images)])
    save_table(folder / f"{name}.parquet", url=["http://x/a.jpg"] * images, sha256=["ab" * 32] * images)
    save_files(folder, {f"{name}_stats.json": b"{}", f"{name}.idx": b"v1.2 50\njpg 512 6000 000000000.jpg\n"})


@pytest.mark.parametrize("pattern", ["", "/*"])
def test_sidecars_of_tars_are_passed_over_and_counted(tmp_path: Path, pattern: str):
    for name in ("00000", "00001"):
        save_shard(tmp_path, name, 25)
    location = f"{tmp_path}{pattern}"
    check_inputs([location], OPTIONS)
    labels, reasons = classify(location)
    assert (len(labels), reasons) == (50, {})
    assert passed_over(location) == {".json": 2, "IDX file without images": 2, "Parquet file without images": 2}


@pytest.mark.parametrize("name", ["00000.parquet", "00000.idx"])
def test_sidecar_that_is_named_itself_is_refused(tmp_path: Path, name: str):
    save_shard(tmp_path, "00000", 1)
    with pytest.raises((NoImages, RequestError), match=name):  # a column of URLs makes it a list
        check_inputs([f"{tmp_path}/{name}"], OPTIONS)


# Unreadable containers

CONTAINERS = ["00000.tar", "00000.tar.gz", "00000.parquet", "00000-images-idx3-ubyte", "00000.idx"]


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("data", [b"", b"\xff" * 2000, b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("first", [True, False])
def test_container_without_its_content_costs_no_other_image(tmp_path: Path, name: str, data: bytes, first: bool):
    save_tar(tmp_path / "00001.tar", [(f"{number}.png", png(number)) for number in range(5)])
    name = name if first else name.replace("00000", "00002")
    save_files(tmp_path, {name: data})
    check_inputs([str(tmp_path)], OPTIONS)
    labels, reasons = classify(tmp_path)
    assert len(labels) == 5
    if name.endswith(".idx") and data:
        assert reasons == {}  # it is taken for the index of another program
    else:
        assert list(reasons) == [name]
        assert reasons[name].startswith("unreadable: ")


@pytest.mark.parametrize("name", CONTAINERS)
def test_empty_container_that_is_named_itself_is_refused(tmp_path: Path, name: str):
    save_files(tmp_path, {name: b""})
    with pytest.raises(InvalidDataset, match=name):
        check_inputs([f"{tmp_path}/{name}"], OPTIONS)


@pytest.mark.parametrize(
    "error", [KeyError("x"), MemoryError(), OverflowError("x"), UnicodeDecodeError("u", b"x", 0, 1, "y")]
)
def test_unexpected_error_in_one_container_costs_no_other(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    save_tar(tmp_path / "bad.tar", [("1.png", png(1))])
    save_tar(tmp_path / "good.tar", [("1.png", png(1))])
    cut = containers.pieces

    def fail_for_one(kind: Any, file: Any, origin: str, **options: Any) -> Any:
        if "bad" in origin:
            raise error
        return cut(kind, file, origin, **options)

    monkeypatch.setattr(containers, "pieces", fail_for_one)
    files = list_files([str(tmp_path)], OPTIONS)
    found = {
        piece.uri.rpartition("/")[2]: piece.kind
        for batch in pieces_of(files, OPTIONS)
        for piece in Piece.from_arrow(batch)
    }
    assert found == {"bad.tar": "unreadable", "good.tar": "tar"}


def test_damaged_row_group_costs_no_other_image(tmp_path: Path):
    path = save_parquet(tmp_path / "a.parquet", [png(number) for number in range(30)], group=10)
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    labels, reasons = classify(path)
    assert labels.keys() == {f"a.parquet#row={number}" for number in [*range(10), *range(20, 30)]}
    assert {reason.partition(":")[0] for reason in reasons.values()} == {"damaged"}


def test_damaged_header_of_a_tar_costs_no_other_image(tmp_path: Path):
    path = save_tar(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(9)])
    data = bytearray(path.read_bytes())
    start = data.index(b"4.png")
    data[start : start + 5] = b"\xff" * 5
    path.write_bytes(data)
    labels, reasons = classify(path)
    assert len(labels) == 8
    assert list(reasons) == [f"a.tar#member=@{start}"]
    assert reasons[f"a.tar#member=@{start}"].startswith("damaged: ")


# Labels


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (pa.array([0.0, 1.0, None, 3.0]), [0, 1, None, 3]),
        (pa.array([0.0, 1.0, float("nan"), 3.0]), [0, 1, None, 3]),
        (pa.array(["0", " 1 ", "3.0", "x"]), [0, 1, 3, None]),
        (pa.array(["ankle boot", "T_SHIRT_TOP", "Bag", ""]), [9, 0, 8, None]),
        (pa.array([b"0", b"dress", None, b"\xff"]), [0, 3, None, None]),
        (pa.array(["3", "bag", None, "3"]).dictionary_encode(), [3, 8, None, 3]),
        (pa.array([1, 2, 637, -1]), [1, 2, None, None]),
        (pa.array([True, False, True, None]), [None] * 4),
    ],
    ids=str,
)
def test_labels_of_every_spelling_are_read_from_parquet(tmp_path: Path, column: pa.Array, labels: list[int | None]):
    path = save_table(tmp_path / "a.parquet", image=[png(0)] * 4, label=column)
    check_inputs([str(path)], OPTIONS)
    assert classify(path) == ({f"a.parquet#row={row}": label for row, label in enumerate(labels)}, {})


def test_class_names_in_the_metadata_give_the_numbers_their_meaning(tmp_path: Path):
    import json

    names = list(reversed(CLASS_NAMES))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"image": pa.array([{"bytes": png(0), "path": "x"}] * 3, PATHS), "label": [0, 9, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    labels, _ = classify(tmp_path)
    assert list(labels.values()) == [9, 0, None]


def test_labels_in_an_unsorted_tar_are_found(tmp_path: Path):
    images = [(f"{number}.png", png(number)) for number in range(5)]
    path = save_tar(tmp_path / "a.tar", [*images, *((f"{number}.cls", b"%d" % number) for number in range(5))])
    assert classify(path) == ({f"a.tar#member={number}.png": number for number in range(5)}, {})


def test_labels_of_idx_images_that_name_no_class_are_unknown(tmp_path: Path):
    images = encode_idx(np.stack([picture(number) for number in range(3)]))
    labels = gzip.compress(encode_idx(np.array([7, 10, 255], np.uint8)))
    save_files(tmp_path, {"x-images-idx3-ubyte": images, "x-labels-idx1-ubyte.gz": labels})
    found, reasons = classify(tmp_path)
    assert (list(found.values()), reasons) == ([7, None, None], {})


# Columns and paths


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_binary()], ids=str)
def test_view_and_large_columns_are_read(tmp_path: Path, kind: pa.DataType):
    path = save_table(tmp_path / "a.parquet", image=pa.array([png(0)] * 3).cast(kind))
    check_inputs([str(path)], OPTIONS)
    labels, reasons = classify(path)
    assert (len(labels), reasons) == (3, {})


@pytest.mark.parametrize(
    "spelling", ["{}/x/a b%41.png", "x/a b%41.png", "./x/a b%41.png", "file://{}/x/a%20b%2541.png"]
)
def test_image_that_a_parquet_file_names_by_path_is_read(tmp_path: Path, spelling: str):
    save_files(tmp_path / "in", {"x/a b%41.png": png(7)})
    rows = [{"bytes": png(1), "path": "nowhere.png"}, {"bytes": None, "path": spelling.format(tmp_path / "in")}]
    path = save_table(tmp_path / "in/a.parquet", image=pa.array(rows, PATHS), label=[1, 2])
    [batch] = read_shard(plan_of(path), OPTIONS)
    assert batch.encoded.to_pylist() == [png(1), png(7)]
    assert batch.labels.to_pylist() == [1, 2]
    assert batch.images.to_pylist() == [f"file://{path}#row=0", f"file://{path}#row=1"]


@pytest.mark.parametrize(
    "path", ["nowhere.png", "http://example.org/a.png", "/nowhere/a.png", "s3:///", "\0", "x" * 5000]
)
def test_path_to_no_file_is_missing(tmp_path: Path, path: str):
    rows = [{"bytes": None, "path": path}, {"bytes": png(1), "path": "x"}, None, {"bytes": None, "path": None}]
    labels, reasons = classify(save_table(tmp_path / "a.parquet", image=pa.array(rows, PATHS)))
    assert list(labels) == ["a.parquet#row=1"]
    assert {name: reason.partition(":")[0] for name, reason in reasons.items()} == {
        f"a.parquet#row={row}": "missing" for row in (0, 2, 3)
    }
    assert "holds only a path" in reasons["a.parquet#row=0"]


def test_files_named_by_path_are_read_in_parts_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(container_paths, "BATCH_BYTES", 1000)
    save_files(tmp_path, {f"{number}.png": png(number) for number in range(6)})
    rows = [{"bytes": None, "path": f"{number}.png"} if number != 3 else None for number in range(6)]
    path = save_table(tmp_path / "a.parquet", image=pa.array(rows, PATHS))
    batches = list(read_shard(plan_of(path), OPTIONS))
    assert len(batches) >= 3
    values = [value for batch in batches for value in batch.encoded.to_pylist()]
    assert values == [png(number) if number != 3 else None for number in range(6)]


def test_hashes_in_parquet_are_not_images(tmp_path: Path):
    save_files(tmp_path, {"a.png": png(0)})
    save_table(tmp_path / "list.parquet", path=["a.png"], sha256=pa.array([b"\1" * 32], pa.binary()))
    labels, reasons = classify(tmp_path)
    assert (list(labels), reasons) == (["a.png"], {})
    assert passed_over(tmp_path) == {"Parquet file without images": 1}


# Tars


def add_member(archive: tarfile.TarFile, name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(data), "1.png"
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("/absolute/1.png", "/absolute/1.png"),
        ("../up/1.png", "../up/1.png"),
        ("UPPER.PNG", "UPPER.PNG"),
        ("a.seg.v2.png", "a.seg.v2.png"),
        ("long/" * 60 + "1.png", "long/" * 60 + "1.png"),
        ("gr\udcf6\udcdfe.png", "gr\\xf6\\xdfe.png"),
        ("#1?.png", "%231%3F.png"),
    ],
)
@pytest.mark.parametrize("file_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_member_of_an_unusual_name_is_read(tmp_path: Path, name: str, fragment: str, file_format: int):
    with tarfile.open(tmp_path / "a.tar", "w", format=file_format) as archive:
        add_member(archive, "._hidden.png", b"x")
        add_member(archive, name, png(0))
    [batch] = read_shard(plan_of(tmp_path), OPTIONS)
    assert batch.images.to_pylist() == [f"file://{tmp_path}/a.tar#member={fragment}"]
    assert batch.encoded.to_pylist() == [png(0)]


def compressed_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        add_member(archive, "1.png", png(0))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (lambda: b"PK\3\4" + bytes(600), "zip archive"),
        (lambda: b"<!DOCTYPE html>" * 99, "web page"),
        (lambda: b"BZh9" * 300, "bzip2"),
    ],
)
def test_reason_of_a_tar_that_is_none_says_what_it_is(tmp_path: Path, data: Callable[[], bytes], found: str):
    save_files(tmp_path, {"a.tar": data(), "b.png": png(0)})
    labels, reasons = classify(tmp_path)
    assert list(labels) == ["b.png"]
    assert reasons["a.tar"].startswith("unreadable: ")
    assert found in reasons["a.tar"]


def test_gzipped_tar_without_the_ending_is_read(tmp_path: Path):
    save_files(tmp_path, {"a.tar": compressed_tar()})
    assert classify(tmp_path) == ({"a.tar#member=1.png": None}, {})


def test_truncated_tar_costs_only_its_last_image(tmp_path: Path):
    path = save_tar(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(5)])
    path.write_bytes(path.read_bytes()[: 4 * 1536 + 700])
    labels, reasons = classify(path)
    assert len(labels) == 4
    assert {name: reason.partition(":")[0] for name, reason in reasons.items()} == {"a.tar#member=4.png": "truncated"}
