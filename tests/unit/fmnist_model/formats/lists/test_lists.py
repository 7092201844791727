"""A list is recognized by its name, its paths start at its folder, and its length needs no memory."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.lists import has_columns, is_list_name, resolve
from tests.unit.fmnist_model.formats.lists.read import peak_memory

# Names


@pytest.mark.parametrize("name", ["a.txt", "b.CSV", "s3://b/c.tsv", "d.lst", "e.jsonl", "f.ndjson", "g.json"])
def test_list_is_recognized_by_name(name: str):
    assert is_list_name(name)


@pytest.mark.parametrize("name", ["a.parquet", "txt", "a.png", "a.txt.gz"])
def test_other_file_is_not_recognized_as_list(name: str):
    assert not is_list_name(name)


def test_only_some_formats_have_columns():
    assert [has_columns(name) for name in ("a.csv", "a.TSV", "a.jsonl", "a.parquet")] == [True] * 4
    assert [has_columns(name) for name in ("a.txt", "a.LST")] == [False] * 2


@pytest.mark.parametrize(
    ("location", "list_location", "expected"),
    [
        ("1.png", "/data/list.txt", "/data/1.png"),
        ("./a b/1%20#.png", "/data/list.txt", "/data/./a b/1%20#.png"),
        ("../x/1.png", "/data/sets/list.txt", "/data/sets/../x/1.png"),
        ("1.png", "/list.txt", "/1.png"),
        ("~/1.png", "/data/list.txt", "/data/~/1.png"),
        ("c:/1.png", "/data/list.txt", "/data/c:/1.png"),
        ("1.png", "s3://bucket/list.txt", "s3://bucket/1.png"),
        ("./../x/1.png", "s3://bucket/sets/list.txt", "s3://bucket/x/1.png"),
        ("a//b/../1.png", "s3://bucket/sets/list.txt", "s3://bucket/sets/a//b/../1.png"),
        ("..png", "s3://bucket/list.txt", "s3://bucket/..png"),
        ("shard.tar#member=a/1.png", "s3://bucket/list.txt", "s3://bucket/shard.tar#member=a/1.png"),
        ("/data/1.png", "s3://bucket/list.txt", "/data/1.png"),
        ("S3://other/../1.png", "/data/list.txt", "S3://other/../1.png"),
        ("s3a://other/1.png", "/data/list.txt", "s3a://other/1.png"),
        ("File:/data/1.png", "s3://bucket/list.txt", "File:/data/1.png"),
        ("https://host/1.png", "/data/list.txt", "https://host/1.png"),
    ],
)
def test_location_is_resolved_relative_to_its_list(location: str, list_location: str, expected: str):
    assert resolve(location, list_location) == expected


def test_location_outside_the_bucket_is_refused():
    with pytest.raises(InvalidDataset, match=r"s3://bucket/list\.txt .*\.\./1\.png"):
        resolve("../1.png", "s3://bucket/list.txt")


# Size


def save_long_list(path: Path, uris: list[str]) -> None:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.table({"uri": uris}), path)
        case ".jsonl":
            path.write_text("\n".join(json.dumps({"uri": uri}) for uri in uris))
        case ".csv":
            path.write_text("\n".join(["uri,label", *(f"{uri},3" for uri in uris)]))
        case _:
            path.write_text("\n".join(uris))


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl", "list.parquet"])
def test_long_list_is_read_in_bounded_memory(tmp_path: Path, name: str):
    save_long_list(tmp_path / name, [f"s3://bucket/a/folder/with/images/{n:010}.png" for n in range(300_000)])
    count, mebibytes = peak_memory(tmp_path / name)
    assert count == 300_000
    assert mebibytes < 110  # as a CSV file, all entries at once take 154
