"""Locations are listed as files by kind and cut into pieces, and an unreadable file doesn't stop the others."""

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.errors import InvalidDataset
from infra.storage.input_files import NOT_THERE, InputNotFound, InputsUnavailable, list_input_files
from infra.storage.tables.planning.plan import Piece
from infra.storage.uris import canonical_uri, local_path
from tasks.classification import containers
from tasks.classification.containers import planned_fingerprint
from tasks.classification.inputs import check_inputs, list_files, pieces_of
from tasks.classification.options import ReadOptions
from tasks.classification.passed_over import PassedOver
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
    touch,
)

# Files


def listed(
    *locations: str | Path, options: ReadOptions = OPTIONS, passed_over: PassedOver | None = None
) -> list[dict[str, Any]]:
    """Rows of `FILE_SCHEMA`."""
    batches = list_files([str(location) for location in locations], options, passed_over)
    return [file for batch in batches for file in batch.to_pylist()]


def names(found: list[dict[str, Any]], below: Path) -> list[str]:
    """Sorted paths of files relative to a folder."""
    return sorted(local_path(file["uri"]).removeprefix(f"{below}/") for file in found)


def test_image_file_is_listed_with_its_version_and_size(tmp_path: Path):
    save_files(tmp_path, {"a.png": b"twelve bytes"})
    (file,) = list_input_files(str(tmp_path))
    assert listed(tmp_path) == [
        {"uri": file.uri, "fingerprint": file.fingerprint, "kind": "image", "size": 12, "label": None}
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "image"),
        ("a.jpg", "image"),
        ("a.jpeg", "image"),
        ("a.webp", "image"),
        ("a.gif", "image"),
        ("a.bmp", "image"),
        ("a.tif", "image"),
        ("a.tiff", "image"),
        ("A.PNG", "image"),
        ("a.JpEg", "image"),
        ("a.tar", "tar"),
        ("a.tar.gz", "tar"),
        ("A.TGZ", "tar"),
        ("a.parquet", "parquet"),
        ("A.PARQUET", "parquet"),
        ("train-images-idx3-ubyte", "idx"),
        ("train-images-idx3-ubyte.gz", "idx"),
        ("TRAIN-IMAGES.IDX3-UBYTE", "idx"),
        ("images.idx", "idx"),
        ("two words #1 50% größe.tar", "tar"),
    ],
)
def test_kind_depends_on_the_extension(tmp_path: Path, name: str, kind: str):
    touch(tmp_path, name)
    assert [(file["uri"], file["kind"]) for file in listed(tmp_path)] == [(canonical_uri(f"{tmp_path}/{name}"), kind)]


@pytest.mark.parametrize("name", ["picture", "a.", "Screenshot 1.5 of 2", "n01440764_10026", "png"])
def test_name_without_an_ending_can_be_that_of_an_image(tmp_path: Path, name: str):
    touch(tmp_path, name)
    assert [file["kind"] for file in listed(tmp_path)] == ["image"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("README.txt", ".txt"),
        ("labels.csv", ".csv"),
        ("list.TSV", ".tsv"),
        ("notes.docx", ".docx"),
        ("Thumbs.db", ".db"),
        ("a.HEIC", ".heic"),
        ("_DSC0003.NEF", ".nef"),
        ("_stats.json", ".json"),
        ("_metadata.crc", ".crc"),
        ("a.b\x1b[31m", "other ending"),
        ("train-labels-idx1-ubyte", "label file"),
        ("train-labels-idx1-ubyte.gz", "label file"),
        ("labels.idx", "label file"),
        ("README", "metadata file"),
        ("LICENSE", "metadata file"),
        ("_SUCCESS", "metadata file"),
        ("_metadata", "metadata file"),
        ("_common_metadata", "metadata file"),
        (".DS_Store", "hidden file"),
        ("._DSC0001.JPG", "hidden file"),
        ("_delta_log/0.json", "metadata folder"),
        (".git/a.png", "hidden folder"),
    ],
)
def test_other_files_in_a_folder_are_passed_over_and_counted(tmp_path: Path, name: str, kind: str):
    touch(tmp_path, "a.png", name)
    passed_over = PassedOver()
    assert names(listed(tmp_path, passed_over=passed_over), tmp_path) == ["a.png"]
    assert passed_over.to_record() == {kind: 1}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"),
        ("IMAGES.IDX", "LABELS.IDX"),
        ("my-image.idx3", "my-label.idx1"),
    ],
)
def test_label_file_of_an_idx_file_is_used_and_not_passed_over(tmp_path: Path, images: str, labels: str):
    touch(tmp_path, images, labels, "other-labels.idx1")
    passed_over = PassedOver()
    assert names(listed(tmp_path, passed_over=passed_over), tmp_path) == [images]
    assert [found.examples for found in passed_over.kinds()] == [(f"{tmp_path}/other-labels.idx1",)]


def test_passed_over_file_is_shown_with_its_path(tmp_path: Path):
    touch(tmp_path, "a.png", "x/my #1 größe.docx")
    passed_over = PassedOver()
    listed(tmp_path, passed_over=passed_over)
    assert [found.examples for found in passed_over.kinds()] == [(f"{tmp_path}/x/my #1 größe.docx",)]


def test_passed_over_files_of_all_inputs_are_counted(tmp_path: Path):
    touch(tmp_path, "x/a.png", "x/b.docx", "y/c.png", "y/d.docx", "y/e.heic")
    passed_over = PassedOver()
    listed(tmp_path / "x", tmp_path / "y", passed_over=passed_over)
    assert passed_over.text() == "3 files passed over: 1 .heic, 2 .docx"


def test_glob_passes_over_only_its_matches(tmp_path: Path):
    touch(tmp_path, "a.png", "a.docx", "b.docx", ".a.png")
    passed_over = PassedOver()
    listed(tmp_path / "a*", passed_over=passed_over)
    assert passed_over.to_record() == {".docx": 1}


def test_image_in_an_unsupported_format_is_planned_if_it_is_named_or_listed(tmp_path: Path):
    touch(tmp_path, "a.HEIC")
    path = save_list(tmp_path / "list.txt", [("a.HEIC", None)])
    for location in (tmp_path / "a.HEIC", path, f"file://{tmp_path}/a.HEIC"):
        assert [file["kind"] for file in listed(location)] == ["image"]


@pytest.mark.parametrize(
    "held",
    [[], ["README.txt"], [".a.png", "_b"], ["a.heic"], ["x/_delta_log/0.json"]],
    ids=["empty", "other files", "hidden files", "unsupported", "metadata"],
)
def test_error_about_a_folder_without_images_names_it(tmp_path: Path, held: list[str]):
    touch(tmp_path, *held)
    with pytest.raises(InputNotFound, match=f"^{re.escape(str(tmp_path))} "):
        listed(tmp_path)


def test_error_about_a_folder_without_images_counts_what_it_holds(tmp_path: Path):
    touch(tmp_path, "a.heic", "b.docx", ".c.png")
    with pytest.raises(InputNotFound, match=r"3 files passed over: 1 \.heic, 1 \.docx, 1 hidden file"):
        listed(tmp_path)


def test_error_about_a_named_file_without_images_has_its_kind(tmp_path: Path):
    touch(tmp_path, "notes.docx")
    with pytest.raises(InputNotFound, match=r"1 \.docx"):
        listed(tmp_path / "notes.docx")


def test_error_about_a_glob_without_a_match_names_it(tmp_path: Path):
    touch(tmp_path, "a.png")
    with pytest.raises(InputNotFound, match=re.escape(f"{tmp_path}/*.jpg ")):
        listed(f"{tmp_path}/*.jpg")


def test_error_about_one_missing_input_names_it(tmp_path: Path):
    touch(tmp_path, "a.png")
    with pytest.raises(InputNotFound, match=re.escape(f"{tmp_path}/nowhere")):
        listed(f"{tmp_path}/a.png", f"{tmp_path}/nowhere", f"{tmp_path}/a.png")


def test_more_files_than_fit_into_a_batch_are_all_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.classification.inputs._BATCH_FILES", 3)
    expected = [f"{number}.png" for number in range(8)]
    touch(tmp_path, *expected)
    assert names(listed(tmp_path), tmp_path) == expected


# Files: lists


def save_list(path: Path, rows: list[tuple[str, int | None]]) -> Path:
    """Write a list, with labels if its format has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix.lower()
    if ending == ".parquet":
        uris, labels = zip(*rows, strict=True)
        pq.write_table(pa.table({"uri": pa.array(uris), "label": pa.array(labels, pa.int64())}), path)
    elif ending in (".csv", ".tsv"):
        separator = "," if ending == ".csv" else "\t"
        lines = [f"{uri}{separator}{'' if label is None else label}" for uri, label in rows]
        path.write_text("\n".join([f"uri{separator}label", *lines]))
    else:
        path.write_text("\n".join(uri for uri, _ in rows))
    return path


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.tsv", "list.parquet", "LIST.TXT", "LIST.CSV"])
def test_list_is_replaced_by_the_files_in_it(tmp_path: Path, name: str):
    save_files(tmp_path, {"a.png": b"1", "x/b.png": b"22"})
    path = save_list(tmp_path / name, [(f"{tmp_path}/a.png", None), (f"file://{tmp_path}/x/b.png", None)])
    expected = {file.uri: (file.fingerprint, file.size) for file in list_input_files(f"{tmp_path}/**/*.png")}
    assert {file["uri"]: (file["fingerprint"], file["size"]) for file in listed(path)} == expected


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.parquet"])
def test_labels_in_a_list_stay_with_their_files(tmp_path: Path, name: str):
    touch(tmp_path, "a.png", "b.png", "c.png")
    path = save_list(tmp_path / name, [("a.png", 7), ("b.png", None), ("c.png", 0)])
    assert [file["label"] for file in listed(path)] == [7, None, 0]


def test_label_column_can_be_chosen(tmp_path: Path):
    touch(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text("uri,label,truth\na.png,1,2\n")
    assert [file["label"] for file in listed(tmp_path / "list.csv", options=ReadOptions(label_column="truth"))] == [2]


@pytest.mark.parametrize("entry", ["a.png", "./a.png", "x/../a.png", "../here/a.png"])
def test_relative_entry_starts_at_the_folder_of_the_list(tmp_path: Path, entry: str, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "here/a.png", "here/x/b.png")
    monkeypatch.chdir("/")
    found = listed(save_list(tmp_path / "here/list.txt", [(entry, None)]))
    assert [(file["uri"], file["size"]) for file in found] == [(f"file://{tmp_path}/here/a.png", 0)]


@pytest.mark.parametrize("entry", ["nowhere.png", "a.png/b.png", "nowhere.parquet"])
def test_missing_entry_is_listed_as_a_missing_image(tmp_path: Path, entry: str):
    touch(tmp_path, "a.png")
    found = listed(save_list(tmp_path / "list.txt", [(entry, None), ("a.png", None)]))
    assert [(file["kind"], file["fingerprint"] == NOT_THERE) for file in found] == [("image", True), ("image", False)]


SPELLINGS = [
    "real/a%41 #1.png",
    "./real//a%41 #1.png",
    "link/../real/./a%41 #1.png",
    "link/a%41 #1.png",
    "outer/middle/a%41 #1.png",
    "{}/real/a%41 #1.png",
    "{}/link/a%41 #1.png",
    "file://{}/real/a%2541%20%231.png",
    "file://{}/real/a%41 #1.png",
    "FILE://{}//link/a%2541 %231.png",
    "file://localhost{}/outer/../outer/middle/a%2541 #1.png",
]


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """A folder in which each of `SPELLINGS` names the same file."""
    save_files(tmp_path, {"real/a%41 #1.png": png(1)})
    (tmp_path / "outer").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "outer/middle").symlink_to(tmp_path / "link")
    return tmp_path


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling_in_a_list_gives_the_canonical_uri(one_file: Path, spelling: str):
    path = save_list(one_file / "list.txt", [(spelling.format(one_file), None)])
    assert [file["uri"] for file in listed(path)] == [f"file://{one_file}/real/a%2541 %231.png"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling_of_an_input_gives_the_canonical_uri(one_file: Path, spelling: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(one_file)
    assert [file["uri"] for file in listed(spelling.format(one_file))] == [f"file://{one_file}/real/a%2541 %231.png"]


def test_file_under_all_spellings_is_planned_once(one_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(one_file)
    spellings = [spelling.format(one_file) for spelling in SPELLINGS]
    path = save_list(one_file / "list.txt", [(spelling, None) for spelling in spellings])
    plan = plan_of(path, one_file, "link", "link/*.png", f"{one_file}/**/*.png", *spellings)
    assert plan.column("uri").to_pylist() == [f"file://{one_file}/real/a%2541 %231.png"]


def test_folder_links_are_resolved_once_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    resolved: list[str] = []

    def counted(folder: str) -> str:
        resolved.append(folder)
        return os.path.realpath(folder)

    monkeypatch.setattr("tasks.classification.lists.real_folder", counted)
    names = [f"x/{number}.png" for number in range(100)]
    touch(tmp_path, *names)
    assert len(listed(save_list(tmp_path / "list.txt", [(name, None) for name in names]))) == 100
    assert set(resolved) == {f"{tmp_path}/x"}
    assert len(resolved) <= 16  # threads that start at the same time don't know of each other


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_parquet_list_with_an_odd_name_is_expanded(tmp_path: Path, prefix: str):
    touch(tmp_path, "x/a.png")
    (tmp_path / "link").symlink_to(tmp_path)
    save_list(tmp_path / "my #1 list%.parquet", [("x/a.png", None)])
    assert names(listed(f"{prefix}{tmp_path}/link/my #1 list%.parquet"), tmp_path) == ["x/a.png"]


def test_entry_in_a_folder_without_permission_does_not_stop_others(open_folder: Path):
    touch(open_folder, "closed/a.png", "b.png")
    path = save_list(open_folder / "list.txt", [("closed/a.png", None), ("b.png", None)])
    (open_folder / "closed").chmod(0)
    with as_nobody():
        found = listed(path)
    assert names(found, open_folder) == ["b.png", "closed/a.png"]


@pytest.mark.parametrize(("entry", "kind"), [("a.tar", "tar"), ("b.parquet", "parquet"), ("c-idx3-ubyte", "idx")])
def test_list_can_contain_containers(tmp_path: Path, entry: str, kind: str):
    touch(tmp_path, entry)
    assert [file["kind"] for file in listed(save_list(tmp_path / "list.txt", [(entry, None)]))] == [kind]


def test_file_with_an_unknown_extension_in_a_list_counts_as_an_image(tmp_path: Path):
    touch(tmp_path, "picture")
    assert [file["kind"] for file in listed(save_list(tmp_path / "list.txt", [("picture", None)]))] == ["image"]


def test_empty_lines_and_comments_are_skipped(tmp_path: Path):
    touch(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text("# images\n\na.png\n\n")
    assert names(listed(tmp_path / "list.txt"), tmp_path) == ["a.png"]


def test_parquet_with_images_and_uris_is_not_a_list(tmp_path: Path):
    pq.write_table(pa.table({"uri": ["a.png"], "image": [b"x"]}), tmp_path / "a.parquet")
    assert [file["kind"] for file in listed(tmp_path / "a.parquet")] == ["parquet"]


def test_parquet_list_in_a_folder_is_not_expanded(tmp_path: Path):
    touch(tmp_path, "elsewhere/a.png")
    save_list(tmp_path / "here/list.parquet", [("../elsewhere/a.png", None)])
    assert names(listed(tmp_path / "here"), tmp_path) == ["here/list.parquet"]


def test_error_about_an_empty_list_names_it(tmp_path: Path):
    touch(tmp_path, "list.txt")
    with pytest.raises(InputNotFound, match=re.escape(f"{tmp_path}/list.txt ")):
        listed(tmp_path / "list.txt")


def test_error_about_an_unreadable_list_names_the_line(tmp_path: Path):
    (tmp_path / "list.txt").write_bytes(b"a.png\n\xff\0.png\n")
    with pytest.raises(InvalidDataset, match=re.escape(f"file://{tmp_path}/list.txt") + ".*line 2"):
        listed(tmp_path / "list.txt")


# Pieces of files


def cut_files(*locations: str | Path, options: ReadOptions = OPTIONS) -> list[Piece]:
    files = list_files([str(location) for location in locations], options)
    return [piece for batch in pieces_of(files, options) for piece in Piece.from_arrow(batch)]


def test_image_file_is_a_piece_with_one_image(tmp_path: Path):
    save_files(tmp_path, {"a.png": b"four"})
    (file,) = listed(tmp_path)
    assert cut_files(tmp_path) == [Piece(**file, first_row=0, rows=1, offset=0)]


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("tar", "tar file without images"),
        ("parquet", "Parquet file without images"),
        ("idx", "IDX file without images"),
    ],
)
def test_container_without_images_is_passed_over(tmp_path: Path, kind: str, counted: str):
    if kind == "idx":
        save_files(tmp_path, {"a-idx3-ubyte": encode_idx(np.zeros((0, 28, 28), np.uint8))})
    else:
        save_container(tmp_path, kind, 0)
    passed_over = PassedOver()
    [pieces] = pieces_of(list_files([str(tmp_path)], OPTIONS), OPTIONS, passed_over)
    assert pieces.num_rows == 0
    assert passed_over.to_record() == {counted: 1}


def test_missing_entry_is_a_piece_with_one_image(tmp_path: Path):
    path = save_list(tmp_path / "list.csv", [("nowhere.png", 3)])
    uri = f"file://{tmp_path}/nowhere.png"
    assert cut_files(path) == [Piece(uri, NOT_THERE, "image", first_row=0, rows=1, offset=0, size=0, label=3)]


def save_container(folder: Path, kind: str, count: int) -> Path:
    if kind == "tar":
        return save_tar(folder / "a.tar", [(f"{number}.png", png(number)) for number in range(count)])
    if kind == "parquet":
        return save_parquet(folder / "a.parquet", [png(number) for number in range(count)], group=4)
    save_files(folder, {"a-idx3-ubyte": encode_idx(np.stack([picture(number) for number in range(count)]))})
    return folder / "a-idx3-ubyte"


@pytest.mark.parametrize("kind", ["tar", "parquet", "idx"])
def test_pieces_of_a_container_contain_every_image_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.classification.containers._PIECE_IMAGES", 4)
    found = cut_files(save_container(tmp_path, kind, 10))
    ends = [piece.first_row + piece.rows for piece in found]
    assert len(found) >= 3
    assert [piece.first_row for piece in found] == [0, *ends[:-1]]
    assert ends[-1] == 10


@pytest.mark.parametrize("kind", ["tar", "parquet", "idx"])
def test_pieces_of_a_container_have_its_uri_kind_and_version(tmp_path: Path, kind: str):
    path = save_container(tmp_path, kind, 3)
    (file,) = list_input_files(str(path))
    [piece] = cut_files(path)
    assert (piece.uri, piece.kind, piece.fingerprint) == (file.uri, kind, planned_fingerprint(file, kind))


def test_pieces_are_in_the_order_of_their_files(tmp_path: Path):
    touch(tmp_path, "a.png", "e.png", "g.png")
    save_tar(tmp_path / "b.tar", [("1.png", b""), ("2.png", b"")])
    save_parquet(tmp_path / "c.parquet", [b""] * 3)
    save_parquet(tmp_path / "d.parquet", [])
    (tmp_path / "f.tar").write_bytes(b"not a tar")
    ordered = sorted(listed(tmp_path), key=lambda file: file["uri"])
    batch = pa.RecordBatch.from_pylist(ordered, schema=next(list_files([str(tmp_path)], OPTIONS)).schema)
    found = [piece for rows in pieces_of([batch], OPTIONS) for piece in Piece.from_arrow(rows)]
    assert [(piece.uri.rpartition("/")[2], piece.kind, piece.rows) for piece in found] == [
        ("a.png", "image", 1),
        ("b.tar", "tar", 2),
        ("c.parquet", "parquet", 3),
        ("e.png", "image", 1),
        ("f.tar", "unreadable", 1),
        ("g.png", "image", 1),
    ]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1PAR1"),
        ("a.parquet", b"\0" * 1000),
        ("a.tar", b"not a tar" * 100),
        ("a.tar.gz", b"\x1f\x8b\x08nonsense"),
        ("a-idx3-ubyte", b""),
        ("a-idx3-ubyte", b"\0\0\x08\x03\0\0\0\x09"),
        ("a-idx3-ubyte.gz", b"\x1f\x8b\x08nonsense"),
    ],
)
def test_unreadable_container_is_one_piece(tmp_path: Path, name: str, data: bytes):
    save_files(tmp_path, {name: data})
    [piece] = cut_files(tmp_path)
    assert (piece.uri, piece.kind, piece.rows) == (f"file://{tmp_path}/{name}", "unreadable", 1)


def test_parquet_without_an_image_column_is_passed_over(tmp_path: Path):
    pq.write_table(pa.table({"number": [1, 2]}), tmp_path / "a.parquet")
    assert cut_files(tmp_path) == []


def test_parquet_without_the_chosen_image_column_is_unreadable(tmp_path: Path):
    pq.write_table(pa.table({"left": [b"1"], "right": [b"2"]}), tmp_path / "a.parquet")
    kinds = [cut_files(tmp_path, options=ReadOptions(image_column=name))[0].kind for name in ("left", "middle")]
    assert kinds == ["parquet", "unreadable"]


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a-idx3-ubyte"])
def test_folder_named_like_a_container_in_a_list_is_one_unusable_piece(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    touch(tmp_path, "b.png")
    found = cut_files(save_list(tmp_path / "list.txt", [(name, None), ("b.png", None)]))
    assert [piece.kind for piece in found] == ["unusable", "image"]


def test_pipe_named_like_a_container_in_a_list_does_not_block(tmp_path: Path):
    os.mkfifo(tmp_path / "a.tar")
    path = save_list(tmp_path / "list.txt", [("a.tar", None)])
    with ThreadPoolExecutor(1) as threads:
        planned = threads.submit(cut_files, path)
        wait([planned], timeout=10)
        blocked = not planned.done()
        os.close(os.open(tmp_path / "a.tar", os.O_RDWR))  # unblocks a reader that waits for a writer
    assert not blocked
    assert [piece.kind for piece in planned.result()] == ["unusable"]


def test_container_that_vanishes_during_planning_is_one_unreadable_piece(tmp_path: Path):
    path = save_container(tmp_path, "tar", 3)
    files = list(list_files([str(path)], OPTIONS))
    path.unlink()
    found = [piece for batch in pieces_of(files, OPTIONS) for piece in Piece.from_arrow(batch)]
    assert [piece.kind for piece in found] == ["unreadable"]


def test_container_without_images_has_no_pieces(tmp_path: Path):
    save_parquet(tmp_path / "a.parquet", [])
    save_tar(tmp_path / "b.tar", [("README", b"not an image")])
    assert cut_files(tmp_path) == []


@pytest.mark.parametrize("error", [KeyError("offset"), MemoryError(), OSError("zstd: bad frame")], ids=repr)
def test_unexpected_exception_in_a_container_leaves_the_others(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    save_parquet(tmp_path / "a.parquet", [png(0)])
    save_tar(tmp_path / "b.tar", [("1.png", png(1))])
    real = containers.pieces

    def fail(kind: str, *arguments: Any, **options: Any) -> Any:
        if kind == "parquet":
            raise error
        return real(kind, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(containers, "pieces", fail)
    assert plan_of(tmp_path).column("kind").to_pylist() == ["unreadable", "tar"]


def test_machine_without_file_handles_fails_planning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_parquet(tmp_path / "a.parquet", [png(0)])

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(containers, "pieces", fail)
    with pytest.raises(InputsUnavailable, match=r"a\.parquet"):
        plan_of(tmp_path)


def test_truncated_parquet_file_is_one_unreadable_piece(tmp_path: Path):
    data = save_parquet(tmp_path / "whole.parquet", [png(0)]).read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "truncated.parquet").write_bytes(data[:length])
        assert [piece.kind for piece in cut_files(tmp_path / "truncated.parquet")] == ["unreadable"]


@pytest.mark.parametrize("named", [True, False], ids=["named itself", "in a folder"])
def test_parquet_with_a_column_name_that_is_not_utf8_is_one_unreadable_piece(tmp_path: Path, named: bool):
    path = save_parquet(tmp_path / "a.parquet", [png(0)])
    path.write_bytes(path.read_bytes().replace(b"image", b"im\xffge"))
    assert [piece.kind for piece in cut_files(path if named else tmp_path)] == ["unreadable"]


@pytest.mark.parametrize("bit", [1, 2, 64], ids=["a negative number", "another number", "a large number"])
def test_parquet_with_a_wrong_row_count_is_one_unreadable_piece(tmp_path: Path, bit: int):
    path = save_parquet(tmp_path / "a.parquet", [b"x"] * 6, group=3)
    whole = path.read_bytes()
    for position in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole) - 8):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
        with suppress(OSError, pa.ArrowException):
            metadata = pq.read_metadata(path)
            if metadata.num_rows == 6 and metadata.row_group(0).num_rows != 3:
                break
    else:
        pytest.fail("no byte of the footer holds the number of rows")
    assert [piece.kind for piece in cut_files(path)] == ["unreadable"]


@settings(deadline=None, print_blob=True, max_examples=200)
@given(data=st.data())
def test_parquet_with_a_damaged_footer_does_not_stop_planning(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = save_parquet(tmp_path_factory.getbasetemp() / "damaged.parquet", [b"x"] * 3)
    damaged = bytearray(path.read_bytes())
    footer = len(damaged) - 8 - int.from_bytes(damaged[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 2))):
        damaged[data.draw(st.integers(footer, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    assert {piece.kind for piece in cut_files(path)} <= {"parquet", "unreadable"}


# Checks before a run starts


def test_inputs_with_images_are_accepted(tmp_path: Path):
    touch(tmp_path, "x/a.png")
    save_parquet(tmp_path / "b.parquet", [])
    check_inputs([str(tmp_path), f"{tmp_path}/x", f"{tmp_path}/x/*.png", f"{tmp_path}/b.parquet"], OPTIONS)


def test_missing_input_is_refused_before_the_run(tmp_path: Path):
    touch(tmp_path, "a.png")
    with pytest.raises(InputNotFound, match="nowhere"):
        check_inputs([f"{tmp_path}/a.png", f"{tmp_path}/nowhere"], OPTIONS)


def test_unreadable_container_is_refused_before_the_run(tmp_path: Path):
    save_files(tmp_path, {"broken.parquet": b"not Parquet"})
    with pytest.raises(InvalidDataset, match=re.escape(f"file://{tmp_path}/broken.parquet")):
        check_inputs([f"{tmp_path}/broken.parquet"], OPTIONS)


def test_folder_is_not_refused_for_its_first_container(tmp_path: Path):
    save_files(tmp_path, {"broken.parquet": b"not Parquet", "empty.tar": b""})
    save_parquet(tmp_path / "good.parquet", [png(1)])
    check_inputs([str(tmp_path)], OPTIONS)
    assert sorted(plan_of(tmp_path).column("kind").to_pylist()) == ["parquet", "unreadable", "unreadable"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(783), pa.bool_()], ids=str)
def test_error_about_a_column_without_images_names_its_type(tmp_path: Path, kind: pa.DataType):
    pq.write_table(pa.table([pa.nulls(3, kind)], names=["image"]), tmp_path / "a.parquet")
    with pytest.raises(InvalidDataset, match=re.escape(f"file://{tmp_path}/a.parquet") + ".*" + re.escape(str(kind))):
        check_inputs([f"{tmp_path}/a.parquet"], OPTIONS)
