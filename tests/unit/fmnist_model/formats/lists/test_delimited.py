"""The columns of a CSV list are found whatever its delimiter, header and quotes, and a bad row is only one entry."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.errors import InvalidDataset
from tests.unit.fmnist_model.formats.lists.read import ORIGIN, entries, firsts, lasts, locations, reasons

COLUMNS = [
    *("uri", "URI", "url", "path", "paths", "Path", "file", "files", "file_name", "filename", "Filename", "filepath"),
    *("file_path", "image", "images", "Image", "image_path", "ImagePath", "imagePath", "image_paths", "image_file"),
    *("image_uri", "image_url", "img", "img_path", "full_path", "relative_path", "location", "source", "s3_uri"),
]
DELIMITERS = [",", ";", "\t", "|"]

# Columns


@pytest.mark.parametrize("column", [*COLUMNS, " Path ", "image path", '"path"', "\ufeffpath"])
def test_column_of_locations_is_found_by_name(column: str):
    text = f"{column},label\na.png,3\nb.png,\n"
    assert firsts(text, "list.csv") == [("a.png", 3), ("b.png", None)]


@pytest.mark.parametrize("column", ["label", "Labels", "class", "fine_label", "target", "Category", "y", "class_name"])
def test_column_of_labels_is_found_by_name(column: str):
    text = f"{column},id,path\n0,7,a.png\n9,7,b.png\n10,7,c.png\nx,7,d.png\nAnkle boot,7,e.png\n,7,f.png\n"
    assert [label for _, label in firsts(text, "list.csv")] == [0, 9, None, None, 9, None]


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("header", [["path", "label"], ["id", "label", "image", "path"], []], ids=str)
def test_any_delimiter_is_recognized(name: str, delimiter: str, header: list[str]):
    cells = {"id": "7", "label": "3", "image": "thumbnail.png", "path": "a, b;c|d.png"}
    rows = [[cells[column] for column in header or ["path", "label"]] for _ in range(3)]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([header, *rows] if header else rows)
    assert lasts(buffer.getvalue(), name) == [("a, b;c|d.png", 3)] * 3


@pytest.mark.parametrize("text", ["a b.png,3\nc.png,4\n", "3,a b.png\n4,c.png\n", "Bag,a b.png\nT-shirt/top,c.png\n"])
def test_two_columns_need_no_header(text: str):
    assert lasts(text, "list.csv") in ([("a b.png", 3), ("c.png", 4)], [("a b.png", 8), ("c.png", 0)])


def test_location_column_can_be_chosen():
    text = "path,photo,label\nx.png,a.png,3\n"
    assert firsts(text, "list.csv", location_column="Photo") == [("a.png", 3)]
    assert firsts(text, "list.csv", location_column="image") == [("x.png", 3)]


def test_label_column_can_be_chosen():
    text = "uri;label;Truth\na.png;1;2\n"
    assert firsts(text, "list.csv", label_column="Truth") == [("a.png", 2)]
    assert firsts(text, "list.csv", label_column="truth") == [("a.png", 2)]


@pytest.mark.parametrize(("first", "second"), [("filename", "uri"), ("url", "path"), ("coco_url", "file_name")])
def test_column_of_paths_is_preferred_to_one_of_urls(first: str, second: str):
    assert locations(f"{first},{second}\nx,a.png\n", "list.csv") == ["a.png"]


def test_index_that_pandas_writes_is_ignored():
    assert firsts(",path,label\n0,a.png,3.0\n", "list.csv") == [("a.png", 3)]


def test_comments_before_the_header_are_skipped():
    assert firsts("# made by hand\n# path,label\na.png,3\n", "list.csv") == [("a.png", 3)]


@pytest.mark.parametrize("header", ["uri", "images", "my file"])
def test_single_column_may_have_a_header(header: str):
    found = entries(f"{header}\na.png\nb.png\n", "list.csv")
    assert [(entry.readings[0].location, entry.may_be_header) for entry in found] == [
        (header, True),
        ("a.png", False),
        ("b.png", False),
    ]


@pytest.mark.parametrize("first", ["a.png", "s3://b/a.png", "/data/a", "a/b", "a.tar", "x\\a"])
def test_single_column_needs_no_header(first: str):
    assert [entry.may_be_header for entry in entries(f"{first}\nb.png\n", "list.csv")] == [False, False]


def test_single_column_can_hold_paths_with_labels():
    assert lasts("a b.png 3\nc.png 4\n", "list.csv") == [("a b.png", 3), ("c.png", 4)]


def test_name_with_a_comma_is_found_in_a_list_without_a_header():
    text = "cat, 1.png\ncat, 2.png\n"
    assert locations(text, "list.csv") == text.splitlines()
    assert locations("a.png\nb.png\nc.png\ncat, 1.png\n", "list.csv") == ["a.png", "b.png", "c.png", "cat, 1.png"]


# Quotes


def test_quoted_cells_are_read():
    text = 'uri,label\n"a, ""b"".png",1\n"two\nlines.png",2\n"c.png","Bag"\n'
    assert firsts(text, "list.csv") == [('a, "b".png', 1), ("two\nlines.png", 2), ("c.png", 8)]


def test_quoted_single_column_is_read():
    assert lasts('"a, b.png"\n"c.png"\n', "list.csv") == [("a, b.png", None), ("c.png", None)]


@pytest.mark.parametrize("row", ['"b.png,1', '"b" x.png,1', '5" screen.png,"1'])
def test_stray_quote_costs_one_entry(row: str):
    text = f"uri,label\na.png,0\n{row}\n" + "".join(f"{number}.png,2\n" for number in range(200))
    found = entries(text, "list.csv")
    assert len(found) == 202
    assert reasons(text, "list.csv") == {3: "damaged"}


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0\ufeff"), min_size=1)
rows = st.lists(st.tuples(cells.filter(lambda text: text.strip()), st.none() | st.integers(0, 9)))


@settings(deadline=None, print_blob=True)
@given(rows, st.sampled_from(DELIMITERS), st.sampled_from(["\n", "\r\n"]))
def test_round_trip_is_lossless(rows: list[tuple[str, int | None]], delimiter: str, ending: str):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator=ending).writerows([("uri", "label"), *rows])
    assert firsts(buffer.getvalue(), "list.csv") == rows


# Errors


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("id,name\n1,a\n", "id, name"),
        ("0,3,a.png\n1,4,b.png\n", "0, 3, a.png"),
        ("a.png,b.png\nc.png,d.png\n", "a.png, b.png"),
        ("a.png;3;cat;dog\n", "a.png, 3, cat, dog"),
    ],
)
def test_columns_that_can_not_be_told_apart_are_named(text: str, named: str):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*{named}.*path"):
        entries(text, "list.csv")


@pytest.mark.parametrize("text", ["uri\na.png\n", "a.png\n", "uri,label\na.png,3\n", "a.png,3\n"])
def test_missing_label_column_is_refused(text: str):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} "):
        entries(text, "list.csv", label_column="target")


@pytest.mark.parametrize(
    ("row", "kind"), [("1", "missing"), (",,3", "missing"), ('"",""', "missing"), ("1,a.png,3,4,5", "damaged")]
)
def test_bad_row_does_not_stop_the_others(row: str, kind: str):
    text = f"id,uri,x\n1,a.png,\n\n{row}\n2,b.png,7\n"
    assert reasons(text, "list.csv") == {4: kind}
    assert [entry.row for entry in entries(text, "list.csv")] == [2, 4, 5]


def test_cells_may_be_left_out_at_the_end_or_added_empty():
    assert firsts("path,label\na.png\nb.png,3,,\n", "list.csv") == [("a.png", None), ("b.png", 3)]


def test_unusable_first_line_is_an_entry():
    assert reasons("a\0b\npath,label\na.png,3\n", "list.csv") == {1: "damaged"}
    assert [entry.readings for entry in entries("a\0b\npath,label\na.png,3\n", "list.csv")][1:] == [(("a.png", 3),)]
