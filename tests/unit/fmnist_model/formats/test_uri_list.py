"""Every entry of a list is read verbatim with its label, or an error names the line."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats import uri_list
from fmnist_model.formats.uri_list import is_list_name, is_uri_list, read_list, resolve

ORIGIN = "s3://bucket/list"


def entries(data: bytes | str, name: str = "list.txt", label_column: str | None = None) -> list[tuple[str, int | None]]:
    file = pa.BufferReader(data.encode() if isinstance(data, str) else data)
    batches = read_list(file, name, ORIGIN, label_column=label_column)
    return [entry for batch in batches for entry in zip(batch.locations, batch.labels, strict=True)]


def locations(data: bytes | str, name: str = "list.txt") -> list[str]:
    return [location for location, _ in entries(data, name)]


def parquet_file(**columns: pa.Array | list[object]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


# Text


def test_lines_are_locations():
    assert locations("s3://b/1.png\n/data/2.png\n../3.png\n") == ["s3://b/1.png", "/data/2.png", "../3.png"]


def test_last_line_needs_no_newline():
    assert locations("1.png\n2.png") == ["1.png", "2.png"]


def test_empty_lines_and_comments_are_skipped():
    assert locations("\n# cats\n1.png\n   \n\t\n#2.png\n3.png#row=4\n\n") == ["1.png", "3.png#row=4"]


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_windows_line_endings_and_byte_order_mark_are_removed(name: str):
    assert locations(b"\xef\xbb\xbfa/1.png\r\na/2.png\r\n\r\n", name) == ["a/1.png", "a/2.png"]


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_locations_are_returned_verbatim(name: str):
    lines = [
        "a/100%25.png",
        "a/gr\u00f6\u00dfe 36.png",
        "a/\u9774.png",
        "a/x\u2028y.png",
        "a/x\x85y.png",
        "a/x\x0cy.png",
        "a/ b.png ",
    ]
    assert locations("\n".join(lines), name) == lines


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.tsv"])
def test_empty_list_has_no_entries(name: str):
    assert entries("", name) == []
    assert entries("\n\n", name) == []


line_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), min_size=1)


@settings(deadline=None, print_blob=True)
@given(st.lists(line_texts.filter(lambda line: line.strip() and line[0] not in "#\ufeff")), st.integers(1, 50))
def test_lines_that_cross_a_block_are_read_whole(lines: list[str], block_bytes: int):
    with pytest.MonkeyPatch.context() as patch:
        # The filter above excludes a byte-order mark, since it is removed only if the first block contains all of it.
        patch.setattr(uri_list, "BLOCK_BYTES", block_bytes)
        assert locations("\n".join(lines)) == lines


# CSV


@pytest.mark.parametrize("column", ["uri", "url", "path", "file", "image", "filename", "file_name", "URI", " Path "])
def test_column_of_locations_is_found_by_name(column: str):
    assert entries(f"id,{column},label\n1,a.png,3\n2,b.png,\n", "list.csv") == [("a.png", 3), ("b.png", None)]


def test_uri_column_takes_precedence():
    assert locations("filename,uri\nx.png,s3://b/x.png\n", "list.csv") == ["s3://b/x.png"]


def test_quoted_fields_are_read():
    text = 'uri,label\n"a, ""b"".png",1\n"two\nlines.png",2\n"c.png",Bag\n'
    assert entries(text, "list.csv") == [('a, "b".png', 1), ("two\nlines.png", 2), ("c.png", 8)]


def test_tsv_is_separated_by_tabs():
    assert entries("uri\tlabel\na, b.png\t1\n", "list.tsv") == [("a, b.png", 1)]


@pytest.mark.parametrize("header", ["uri", "images", "my file"])
def test_single_column_may_have_a_header(header: str):
    assert locations(f"{header}\na.png\nb.png\n", "list.csv") == ["a.png", "b.png"]


@pytest.mark.parametrize("first", ["a.png", "s3://b/a.png", "/data/a", "a/b"])
def test_single_column_may_have_no_header(first: str):
    assert locations(f"{first}\nb.png\n", "list.csv") == [first, "b.png"]


@pytest.mark.parametrize("column", ["label", "labels", "class", "fine_label"])
def test_column_of_labels_is_found_by_name(column: str):
    text = f"{column},uri\n0,a.png\n9,b.png\n10,c.png\nx,d.png\nAnkle boot,e.png\n"
    assert [label for _, label in entries(text, "list.csv")] == [0, 9, None, None, 9]


def test_named_column_of_labels_is_read():
    assert entries("uri,label,target\na.png,1,2\n", "list.csv", "target") == [("a.png", 2)]


rows = st.lists(st.tuples(line_texts.filter(lambda text: "\ufeff" not in text), st.none() | st.integers(0, 9)))


@settings(deadline=None, print_blob=True)
@given(rows, st.sampled_from([",", "\t"]))
def test_csv_round_trip_is_lossless(rows: list[tuple[str, int | None]], delimiter: str):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([("uri", "label"), *rows])
    assert entries(buffer.getvalue(), "list.csv" if delimiter == "," else "list.tsv") == rows


# Parquet


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_list_is_read(kind: pa.DataType):
    data = parquet_file(id=[1, 2, 3], Path=pa.array(["a.png", "b.png", "a.png"]).cast(kind), label=[1, None, 12])
    assert entries(data, "list.parquet") == [("a.png", 1), ("b.png", None), ("a.png", None)]


def test_parquet_list_without_labels_is_read():
    assert entries(parquet_file(uri=["a.png"]), "list.parquet") == [("a.png", None)]


@pytest.mark.parametrize("missing", [None, "", "a\0b"])
def test_parquet_row_without_location_is_refused(missing: str | None):
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} .*row 2\b"):
        entries(parquet_file(uri=["a.png", "b.png", missing]), "list.parquet")


def test_parquet_file_without_locations_is_refused_with_its_columns():
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} .*uri \(int64\)"):
        entries(parquet_file(uri=[1]), "list.parquet")


def test_damaged_parquet_list_is_refused():
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*Parquet"):
        entries(b"PAR1", "list.parquet")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"uri": pa.string()}, True),
        ({"id": pa.int64(), "FileName": pa.large_string()}, True),
        ({"image": pa.string()}, True),
        ({"uri": pa.string(), "image": pa.binary()}, False),
        ({"uri": pa.int64()}, False),
        ({"name": pa.string()}, False),
        ({}, False),
    ],
)
def test_parquet_list_is_distinguished_from_images(columns: dict[str, pa.DataType], expected: bool):
    assert is_uri_list(pa.schema(list(columns.items()))) is expected


# Names


@pytest.mark.parametrize("name", ["a.txt", "b.CSV", "s3://b/c.tsv", "d.lst"])
def test_list_is_recognized_by_name(name: str):
    assert is_list_name(name)


@pytest.mark.parametrize("name", ["a.parquet", "txt", "a.png", "a.txt.gz"])
def test_other_file_is_not_recognized_as_list(name: str):
    assert not is_list_name(name)


@pytest.mark.parametrize(
    ("location", "list_location", "expected"),
    [
        ("1.png", "/data/list.txt", "/data/1.png"),
        ("./a b/1%20#.png", "/data/list.txt", "/data/./a b/1%20#.png"),
        ("../x/1.png", "/data/sets/list.txt", "/data/sets/../x/1.png"),
        ("1.png", "/list.txt", "/1.png"),
        ("1.png", "s3://bucket/list.txt", "s3://bucket/1.png"),
        ("./../x/1.png", "s3://bucket/sets/list.txt", "s3://bucket/x/1.png"),
        ("a//b/../1.png", "s3://bucket/sets/list.txt", "s3://bucket/sets/a//b/../1.png"),
        ("..png", "s3://bucket/list.txt", "s3://bucket/..png"),
        ("shard.tar#member=a/1.png", "s3://bucket/list.txt", "s3://bucket/shard.tar#member=a/1.png"),
        ("/data/1.png", "s3://bucket/list.txt", "/data/1.png"),
        ("S3://other/../1.png", "/data/list.txt", "S3://other/../1.png"),
        ("https://host/1.png", "/data/list.txt", "https://host/1.png"),
    ],
)
def test_location_is_resolved_relative_to_its_list(location: str, list_location: str, expected: str):
    assert resolve(location, list_location) == expected


def test_location_outside_the_bucket_is_refused():
    with pytest.raises(InvalidDataset, match=r"s3://bucket/list\.txt .*\.\./1\.png"):
        resolve("../1.png", "s3://bucket/list.txt")


# Errors


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.tsv", "list.lst"])
@pytest.mark.parametrize(
    ("line", "reason"), [(b"gr\xf6\xdfe.png", "UTF-8"), (b"a\0b.png", "NUL"), (b"\x89PNG\r\n", "UTF-8")]
)
def test_line_that_is_not_text_is_refused(name: str, line: bytes, reason: str):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*line 3: .*{reason}"):
        entries(b"a/1.png\na/2.png\n" + line + b"\na/3.png\n", name)


def test_line_numbers_count_across_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uri_list, "BLOCK_BYTES", 100)
    with pytest.raises(InvalidDataset, match=r"line 1,235: .*UTF-8"):
        entries(b"12345.png\n" * 1234 + b"\xff\n")


def test_overlong_line_is_refused():
    with pytest.raises(InvalidDataset, match=r"line 1: .*1,048,576 bytes"):
        entries(b"x" * 30_000_000)


def test_utf16_text_is_refused():
    with pytest.raises(InvalidDataset, match=r"line 1: .*UTF-8"):
        entries("a/1.png\n".encode("utf-16"))


@pytest.mark.parametrize("text", ["id,name\n1,a.png\n", "uri;label\na.png;3\n"])
def test_csv_without_a_location_column_is_refused_with_its_columns(text: str):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*line 1.*{', '.join(text.splitlines()[0].split(','))}"):
        entries(text, "list.csv")


@pytest.mark.parametrize(("row", "what"), [("1", "1 of 3"), (",,3", "3 of 3"), ('"",""', "2 of 3")])
def test_csv_row_without_location_is_refused(row: str, what: str):
    with pytest.raises(InvalidDataset, match=f"line 4: .*{what} columns"):
        entries(f"id,uri,x\n1,a.png,\n\n{row}\n", "list.csv")


@pytest.mark.parametrize("text", ['uri\n"a.png\nb.png\n', 'uri\n"a" b.png\n'])
def test_csv_with_a_stray_quote_is_refused(text: str):
    with pytest.raises(InvalidDataset, match=r"line [23]: "):
        entries(text, "list.csv")


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "list.txt"])
def test_missing_label_column_is_refused(name: str):
    data = parquet_file(uri=["a.png"]) if name == "list.parquet" else b"uri\na.png\n"
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*'target'"):
        entries(data, name, "target")


# Size


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.parquet"])
def test_long_list_is_read_in_bounded_memory(tmp_path: Path, name: str):
    path = tmp_path / name
    uris = [f"s3://bucket/a/folder/with/images/{number:010}.png" for number in range(1_000_000)]
    if name == "list.parquet":
        pq.write_table(pa.table({"uri": uris}), path)
    else:
        path.write_text("\n".join(["uri", *uris] if name == "list.csv" else uris))
    program = f"""
import resource
import pyarrow as pa
from fmnist_model.formats.uri_list import read_list
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with pa.OSFile({str(path)!r}) as file:
    assert sum(len(batch.locations) for batch in read_list(file, {name!r}, "x")) == 1_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(output) < 60  # MiB
