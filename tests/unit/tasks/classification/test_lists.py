"""Every entry of a list becomes an image of the plan or a row of quarantine, whatever it looks like."""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmnist_model.images.decode import decode_images
from infra.errors import RequestError
from infra.storage.input_files import InputNotFound
from tasks.classification.inputs import check_inputs, list_files
from tasks.classification.options import ReadOptions
from tasks.classification.read import read_shard
from tests.unit.tasks.classification.image_inputs import (
    OPTIONS,
    as_nobody,
    plan_of,
    png,
    save_files,
    save_parquet,
    save_tar,
    touch,
)

KINDS = ["txt", "lst", "csv", "tsv", "jsonl", "parquet"]


def save_list(path: Path, *entries: str, labels: list[Any] | None = None) -> Path:
    """Write a list in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            columns = {"path": list(entries)} | ({"label": labels} if labels else {})
            pq.write_table(pa.table(columns), path)
        case ".jsonl":
            rows = [{"path": entry} | ({"label": labels[n]} if labels else {}) for n, entry in enumerate(entries)]
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        case ".csv" | ".tsv":
            separator = "," if path.suffix == ".csv" else "\t"
            rows = [[entry, *([str(labels[n])] if labels else [])] for n, entry in enumerate(entries)]
            header = ["path", "label"] if labels else ["path"]
            path.write_text("".join(f"{separator.join(row)}\n" for row in [header, *rows]))
        case _:
            path.write_text("".join(f"{entry}{f' {labels[n]}' if labels else ''}\n" for n, entry in enumerate(entries)))
    return path


def listed(*locations: str | Path, options: ReadOptions = OPTIONS) -> list[dict[str, Any]]:
    """Rows of `FILE_SCHEMA`."""
    batches = list_files([str(location) for location in locations], options)
    return [file for batch in batches for file in batch.to_pylist()]


def outcomes(path: Path, options: ReadOptions = OPTIONS) -> dict[str, str]:
    """Plan and read a list. Return for each image its label, or the kind of its reason, by the end of its URI."""
    found: dict[str, str] = {}
    for batch in read_shard(plan_of(path, options=options), options):
        rejected = dict(decode_images(batch.encoded).rejected)
        for row, (uri, label) in enumerate(zip(batch.images.to_pylist(), batch.labels.to_pylist(), strict=True)):
            name = uri.removeprefix(f"file://{path.parent}/")
            assert name not in found
            reason = batch.reasons.get(row, rejected.get(row))
            found[name] = "predicted" if reason is None else reason.partition(":")[0]
            if label is not None:
                found[name] += f" {label}"
    return found


def reasons(path: Path) -> dict[str, str]:
    """Plan and read a list. Return the reason of each image in quarantine, by the end of its URI."""
    found: dict[str, str] = {}
    for batch in read_shard(plan_of(path), OPTIONS):
        uris = batch.images.to_pylist()
        found |= {uris[row].removeprefix(f"file://{path.parent}/"): reason for row, reason in batch.reasons.items()}
    return found


# Formats


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [[0, 9, 3], ["T-shirt/top", "Ankle boot", "Dress"]], ids=["numbers", "names"])
def test_images_of_a_list_are_read_with_their_labels(tmp_path: Path, kind: str, labels: list[Any]):
    save_files(tmp_path, {"a.png": png(1), "my photo 2.png": png(2), "x/c": png(3)})
    path = save_list(tmp_path / f"list.{kind}", "a.png", "my photo 2.png", "x/c", labels=labels)
    assert outcomes(path) == {"a.png": "predicted 0", "my photo 2.png": "predicted 9", "x/c": "predicted 3"}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_list_without_labels_are_read(tmp_path: Path, kind: str):
    save_files(tmp_path, {"a.png": png(1), "my photo 2.png": png(2)})
    path = save_list(tmp_path / f"list.{kind}", "a.png", "my photo 2.png")
    assert outcomes(path) == {"a.png": "predicted", "my photo 2.png": "predicted"}


def test_list_of_mxnet_is_read(tmp_path: Path):
    save_files(tmp_path, {"a b.png": png(1), "c.png": png(2)})
    (tmp_path / "train.lst").write_text("0\t3\ta b.png\n1\t7\tc.png\n")
    assert outcomes(tmp_path / "train.lst") == {"a b.png": "predicted 3", "c.png": "predicted 7"}


def test_name_that_ends_like_a_label_wins_over_a_path_with_a_label(tmp_path: Path):
    save_files(tmp_path, {"a.png": png(1), "a.png 3": png(2), "b.png": png(3)})
    path = save_list(tmp_path / "list.txt", "a.png 3", "b.png 3")
    assert outcomes(path) == {"a.png 3": "predicted", "b.png": "predicted 3"}


def test_label_of_another_dataset_is_no_label(tmp_path: Path):
    save_files(tmp_path, {"a.png": png(1)})
    assert outcomes(save_list(tmp_path / "val.txt", "a.png 817")) == {"a.png": "predicted"}


def test_long_labelled_list_looks_each_path_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from infra.storage import input_files

    looked_up: list[str] = []

    def counted(uri: str) -> Any:
        looked_up.append(uri)
        return input_files.stat_input(uri)

    monkeypatch.setattr("tasks.classification.lists.stat_input", counted)
    monkeypatch.setattr("tasks.classification.lists._LABELLED_ENTRIES", 10)
    monkeypatch.setattr("fmnist_model.formats.lists.entry.BATCH_ENTRIES", 100)
    touch(tmp_path, "a.png", "b.png")
    path = save_list(tmp_path / "val.txt", *["a.png"] * 150, "b.png", labels=[3] * 151)
    assert {(file["uri"], file["label"]) for file in listed(path)} == {
        (f"file://{tmp_path}/a.png", 3),
        (f"file://{tmp_path}/b.png", 3),
    }
    assert len(looked_up) == 2 * 100 + 51


def test_list_with_hashes_names_images(tmp_path: Path):
    save_files(tmp_path, {"a.png": png(1)})
    hashes = pa.array([b"\1" * 32], pa.binary())
    pq.write_table(pa.table({"sha256": hashes, "path": ["a.png"], "md5": hashes}), tmp_path / "list.parquet")
    assert outcomes(tmp_path / "list.parquet") == {"a.png": "predicted"}


def test_column_of_locations_can_be_chosen(tmp_path: Path):
    save_files(tmp_path, {"a.png": png(1)})
    options = ReadOptions(image_column="photo", label_column="truth")
    (tmp_path / "list.csv").write_text("photo,path,truth\na.png,b.png,4\n")
    pq.write_table(pa.table({"photo": ["a.png"], "truth": [4]}), tmp_path / "list.parquet")
    for name in ("list.csv", "list.parquet"):
        assert outcomes(tmp_path / name, options) == {"a.png": "predicted 4"}


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_header_of_a_single_column_is_no_image(tmp_path: Path, kind: str):
    save_files(tmp_path, {"a.png": png(1)})
    (tmp_path / f"list.{kind}").write_text("image\na.png\n")
    assert outcomes(tmp_path / f"list.{kind}") == {"a.png": "predicted"}


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_image_with_the_name_of_a_column_is_an_image(tmp_path: Path, kind: str):
    save_files(tmp_path, {"image": png(1), "a.png": png(2)})
    (tmp_path / f"list.{kind}").write_text("image\na.png\n")
    assert outcomes(tmp_path / f"list.{kind}") == {"image": "predicted", "a.png": "predicted"}


def test_content_decides_whether_an_entry_is_an_image(tmp_path: Path):
    save_files(tmp_path, {"a": png(1), "b.dat": png(2), "c": b"text", "d.docx": b"PK", "e.txt": png(3)})
    path = save_list(tmp_path / "list.txt", "a", "b.dat", "c", "d.docx", "e.txt")
    assert outcomes(path) == {
        "a": "predicted",
        "b.dat": "predicted",
        "c": "not an image",
        "d.docx": "not an image",
        "e.txt": "predicted",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_containers_of_a_list_are_read(tmp_path: Path, kind: str):
    save_tar(tmp_path / "a.tar", [("1.png", png(1)), ("2.png", png(2))])
    save_parquet(tmp_path / "b.parquet", [png(3)])
    save_files(tmp_path, {"broken.tar": b"no tar" * 500})
    path = save_list(tmp_path / f"list.{kind}", "a.tar", "b.parquet", "broken.tar")
    assert outcomes(path) == {
        "a.tar#member=1.png": "predicted",
        "a.tar#member=2.png": "predicted",
        "b.parquet#row=0": "predicted",
        "broken.tar": "unreadable",
    }


# Spellings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spelling",
    [
        "file://{encoded}",
        "file:{encoded}",
        "FILE:{path}",
        "file://localhost{encoded}",
        "File://LocalHost{encoded}",
        "file:////{encoded}",
        "{path}",
        "{encoded}",
        "größe 50%25 #1.png",
        "gr%C3%B6%C3%9Fe%2050%2525%20%231.png",
        "./größe 50%25 #1.png",
        " größe 50%25 #1.png ",
    ],
)
def test_every_spelling_names_the_same_image(tmp_path: Path, kind: str, spelling: str):
    name = "größe 50%25 #1.png"
    save_files(tmp_path, {name: png(1)})
    entry = spelling.format(path=f"{tmp_path}/{name}", encoded=quote(f"{tmp_path}/{name}"))
    path = save_list(tmp_path / f"list.{kind}", entry)
    assert outcomes(path) == {"größe 50%2525 %231.png": "predicted"}


def test_path_of_python_is_read(tmp_path: Path):
    save_files(tmp_path, {"my photo.png": png(1)})
    path = save_list(tmp_path / "list.txt", (tmp_path / "my photo.png").as_uri())
    assert outcomes(path) == {"my photo.png": "predicted"}


def test_path_is_taken_literally_before_it_is_decoded(tmp_path: Path):
    save_files(tmp_path, {"a%20b.png": png(1), "a b.png": png(2), "c%20d.png": png(3), "e f.png": png(4)})
    path = save_list(tmp_path / "list.txt", "a%20b.png", "c%20d.png", "e%20f.png")
    assert outcomes(path) == dict.fromkeys(["a%2520b.png", "c%2520d.png", "e f.png"], "predicted")


def test_image_that_a_list_names_twice_is_one_image(tmp_path: Path):
    save_files(tmp_path, {"x/a.png": png(1)})
    (tmp_path / "link").symlink_to("x")
    path = save_list(
        tmp_path / "list.txt", "x/a.png", "./x//a.png 3", "link/a.png", f"file:{tmp_path}/x/a.png", "x/a.png"
    )
    assert outcomes(path) == {"x/a.png": "predicted 3"}


# Entries that can't be used


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("nowhere.png", "vanished"),
        ("nowhere.tar", "vanished"),
        ("a.png/b.png", "vanished"),
        ("~/a.png", "vanished"),
        ("folder", "unreadable"),
        ("folder/", "unreadable"),
        (".", "unreadable"),
        ("pipe.png", "unreadable"),
        ("http://127.0.0.1/a.png", "unsupported"),
        ("https://bucket.s3.amazonaws.com/a.png?X-Amz-Signature=1", "unsupported"),
        ("gs://bucket/a.png", "unsupported"),
        ("HDFS://host/a.png", "unsupported"),
        ("data:image/png;base64,iVBORw0KGgo=", "unsupported"),
        ("C:\\images\\a.png", "unsupported"),
        ("D:/images/a.png", "unsupported"),
        ("images\\a.png", "unsupported"),
        ("\\\\server\\share\\a.png", "unsupported"),
        ("a.tar#member=1.png", "unsupported"),
        ("file://host/a.png", "unreadable"),
        ("s3://_/a.png", "unreadable"),
        ("x" * 300 + ".png", "unreadable"),
        ("x" * 9000 + ".png", "damaged"),
    ],
    ids=lambda value: value[:30],
)
def test_unusable_entry_is_one_row_of_quarantine(tmp_path: Path, kind: str, entry: str, reason: str):
    save_files(tmp_path, {"a.png": png(1), "c.png": png(2), "folder/x.png": png(3)})
    os.mkfifo(tmp_path / "pipe.png")
    found = outcomes(save_list(tmp_path / f"list.{kind}", "a.png", entry, "c.png"))
    assert len(found) == 3
    assert (found.pop("a.png"), found.pop("c.png")) == ("predicted", "predicted")
    assert list(found.values()) == [reason]


@pytest.mark.parametrize(
    ("entry", "word"), [("folder", "folder"), ("~/a.png", "~"), ("a\\b.png", "Windows"), ("gs://b/a", "gs:")]
)
def test_reason_says_what_is_wrong_with_an_entry(tmp_path: Path, entry: str, word: str):
    save_files(tmp_path, {"folder/x.png": png(3)})
    [reason] = reasons(save_list(tmp_path / "list.txt", entry)).values()
    assert word in reason


@pytest.mark.parametrize(
    ("name", "data", "row", "kind"),
    [
        ("list.txt", b"a.png\nb\0.png\nc.png\n", 2, "damaged"),
        ("list.csv", b'path,label\na.png,1\n"b.png,1\nc.png,1\n', 3, "damaged"),
        ("list.csv", b"path,label\na.png,1\n,1\nc.png,1\n", 3, "missing"),
        ("list.csv", b"path,label\na.png,1\nb.png,1,2,3\nc.png,1\n", 3, "damaged"),
        ("list.jsonl", b'{"path": "a.png"}\n{"path": \n"c.png"\n', 2, "damaged"),
    ],
)
def test_line_that_can_not_be_parsed_is_one_row_of_quarantine(
    tmp_path: Path, name: str, data: bytes, row: int, kind: str
):
    save_files(tmp_path, {"a.png": png(1), "c.png": png(2)} | {name: data})
    found = outcomes(tmp_path / name)
    assert {file: outcome.split(" ")[0] for file, outcome in found.items()} == {
        "a.png": "predicted",
        f"{name}/line={row}": kind,
        "c.png": "predicted",
    }
    assert f"{row}" in reasons(tmp_path / name)[f"{name}/line={row}"]


def test_null_in_a_parquet_list_is_one_row_of_quarantine(tmp_path: Path):
    save_files(tmp_path, {"a.png": png(1)})
    pq.write_table(pa.table({"path": ["a.png", None]}), tmp_path / "list.parquet")
    assert outcomes(tmp_path / "list.parquet") == {"a.png": "predicted", "list.parquet/row=1": "missing"}


def test_password_in_an_entry_is_not_written_down(tmp_path: Path):
    save_files(tmp_path, {"a.png": png(1)})
    path = save_list(tmp_path / "list.txt", "s3://user:secret@bucket/a.png", "http://user:secret@host/a.png", "a.png")
    assert sorted(reasons(path)) == ["list.txt/line=1", "list.txt/line=2"]
    assert "secret" not in str(plan_of(path).to_pylist())


def test_entry_without_permission_is_one_row_of_quarantine(open_folder: Path):
    save_files(open_folder, {"closed/a.png": png(1), "b.png": png(2)})
    path = save_list(open_folder / "list.txt", "closed/a.png", "b.png", labels=[3, 4])
    (open_folder / "closed").chmod(0)
    with as_nobody():
        assert outcomes(path) == {"closed/a.png": "permission 3", "b.png": "predicted 4"}


def test_entry_that_becomes_usable_is_planned_again(tmp_path: Path):
    path = save_list(tmp_path / "list.txt", "a.png", "b")
    (tmp_path / "b").mkdir()
    before = {file["uri"]: file["fingerprint"] for file in listed(path)}
    (tmp_path / "b").rmdir()
    save_files(tmp_path, {"a.png": png(1), "b": png(2)})
    after = {file["uri"]: file["fingerprint"] for file in listed(path)}
    assert before.keys() == after.keys()
    assert all(before[uri] != after[uri] for uri in before)


def test_unusable_entry_is_the_same_in_the_next_run(tmp_path: Path):
    path = save_list(tmp_path / "list.jsonl", "gs://b/a.png", "folder")
    (tmp_path / "folder").mkdir()
    before = listed(path)
    with path.open("a") as opened:
        opened.write('"c.png"\n')
    assert listed(path)[:2] == before


def test_unexpected_error_about_one_entry_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from infra.storage import input_files

    def fails(uri: str) -> Any:
        if uri.endswith("/b.png"):
            raise KeyError("something new")
        return input_files.stat_input(uri)

    monkeypatch.setattr("tasks.classification.lists.stat_input", fails)
    save_files(tmp_path, {"a.png": png(1), "b.png": png(2)})
    path = save_list(tmp_path / "list.txt", "a.png", "b.png")
    assert outcomes(path) == {"a.png": "predicted", "list.txt/line=2": "damaged"}
    assert "KeyError" in reasons(path)["list.txt/line=2"]


# Checks before a run starts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [None, [3, 4]], ids=["without labels", "with labels"])
def test_list_of_which_nothing_exists_is_refused(tmp_path: Path, kind: str, labels: list[int] | None):
    path = save_list(tmp_path / f"list.{kind}", "x/a.png", "gs://bucket/b.png", labels=labels)
    with pytest.raises(RequestError) as error:
        check_inputs([str(path)], OPTIONS)
    for named in (f"list.{kind}", "x/a.png", f"{tmp_path}/x/a.png", "gs://bucket/b.png"):
        assert named in str(error.value)


@pytest.mark.parametrize("position", [0, 1, 999])
def test_list_of_which_one_image_exists_is_accepted(tmp_path: Path, position: int):
    touch(tmp_path, "a.png")
    names = [f"nowhere{number}.png" for number in range(1000)]
    names[position] = "a.png"
    check_inputs([str(save_list(tmp_path / "list.txt", *names))], OPTIONS)


def test_only_the_first_entries_are_checked(tmp_path: Path):
    touch(tmp_path, "a.png")
    names = [f"nowhere{number}.png" for number in range(1000)]
    with pytest.raises(RequestError, match=r"1,000"):
        check_inputs([str(save_list(tmp_path / "list.txt", *names, "a.png"))], OPTIONS)


def test_refusal_names_the_file_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "data/a b.png")
    monkeypatch.chdir(tmp_path)
    path = save_list(tmp_path / "lists/val.txt", "data/a b.png 3")
    with pytest.raises(RequestError, match=re.escape(f"{tmp_path}/data/a b.png exists")):
        check_inputs([str(path)], OPTIONS)


def test_refusal_explains_a_home_folder(tmp_path: Path):
    with pytest.raises(RequestError, match=r"~/a.png.*~ is not"):
        check_inputs([str(save_list(tmp_path / "val.txt", "~/a.png"))], OPTIONS)


def test_refusal_of_lines_that_can_not_be_parsed_names_them(tmp_path: Path):
    (tmp_path / "list.jsonl").write_text("a.png\nb.png\n")
    with pytest.raises(RequestError, match=r"line 1 .*line 2 "):
        check_inputs([f"{tmp_path}/list.jsonl"], OPTIONS)


def test_refusal_does_not_show_a_password(tmp_path: Path):
    with pytest.raises(RequestError) as error:
        check_inputs([str(save_list(tmp_path / "list.txt", "http://user:secret@host/a.png"))], OPTIONS)
    assert "secret" not in str(error.value)


def test_list_of_images_that_may_not_be_read_is_accepted(open_folder: Path):
    touch(open_folder, "closed/a.png")
    path = save_list(open_folder / "list.txt", "closed/a.png")
    (open_folder / "closed").chmod(0)
    with as_nobody():
        check_inputs([str(path)], OPTIONS)


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_empty_list_is_refused(tmp_path: Path, name: str):
    touch(tmp_path, name)
    with pytest.raises(InputNotFound, match=re.escape(f"{tmp_path}/{name} ")):
        check_inputs([f"{tmp_path}/{name}"], OPTIONS)


def test_list_whose_first_container_is_damaged_is_accepted(tmp_path: Path):
    save_files(tmp_path, {"a.tar": b"no tar" * 500, "b.png": png(1)})
    check_inputs([str(save_list(tmp_path / "list.txt", "a.tar", "b.png"))], OPTIONS)
