"""Each object of a JSON list is an entry, and a line that isn't one doesn't stop the others."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.errors import InvalidDataset
from tests.unit.fmnist_model.formats.lists.read import ORIGIN, entries, firsts, reasons

NAMES = ["list.jsonl", "list.ndjson", "list.json", "LIST.JSONL"]


def text_of(*values: Any) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["path", "Path", "image", "file", "file_name", "uri", "url", "image_path", "imagePath"])
def test_location_is_found_by_its_key(name: str, key: str):
    assert firsts(text_of({"id": 1, key: "a.png"}, {key: "b.png", "id": 2}), name) == [("a.png", None), ("b.png", None)]


@pytest.mark.parametrize("key", ["label", "Label", "class", "target", "category", "y", "class_name"])
@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, 3),
        (3.0, 3),
        (1e3, None),
        (float("nan"), None),
        ("3", 3),
        ("Bag", 8),
        (None, None),
        (17, None),
        ("cat", None),
        ([1, 2], None),
        (True, None),
    ],
)
def test_label_is_found_by_its_key(key: str, value: Any, label: int | None):
    assert firsts(text_of({key: value, "path": "a.png"}), "list.jsonl") == [("a.png", label)]


def test_keys_can_be_chosen():
    text = text_of({"label": 1, "truth": 2, "path": "x.png", "photo": "a.png"}, {"photo": "b.png"})
    found = firsts(text, "list.jsonl", location_column="photo", label_column="truth")
    assert found == [("a.png", 2), ("b.png", None)]


def test_string_is_a_location():
    assert firsts(text_of("a.png", "größe/\n.png"), "list.jsonl") == [("a.png", None), ("größe/\n.png", None)]


def test_path_in_an_object_of_hugging_face_is_read():
    assert firsts(text_of({"image": {"bytes": None, "path": "a.png"}, "label": 4}), "list.jsonl") == [("a.png", 4)]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('{"path": "b.png"', "damaged"),
        ("b.png", "damaged"),
        ("17", "damaged"),
        ("null", "damaged"),
        ("[" * 100_000, "damaged"),
        ("9" * 5000, "damaged"),
        ('"\\ud800.png"', "damaged"),
        ('"a\\u0000b.png"', "damaged"),
        ('{"path": null}', "missing"),
        ('{"path": ""}', "missing"),
        ('{"path": 17}', "missing"),
        ('{"caption": "a cat"}', "missing"),
        ("{}", "missing"),
    ],
    ids=lambda value: value[:30],
)
def test_bad_line_does_not_stop_the_others(line: str, kind: str):
    text = f'{{"path": "a.png"}}\n{line}\n{{"path": "c.png"}}\n'
    assert reasons(text, "list.jsonl") == {2: kind}
    assert [entry.row for entry in entries(text, "list.jsonl")] == [1, 2, 3]


def test_reason_names_the_keys():
    assert "caption" in entries('{"caption": "a cat"}\n', "list.jsonl")[0].reason


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("value", [[{"path": "a.png"}], ["a.png"]], ids=["objects", "strings"])
def test_json_array_is_refused(name: str, indent: int | None, value: Any):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*array"):
        entries(json.dumps(value, indent=indent), name)


def test_json_object_over_several_lines_is_refused():
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*object"):
        entries(json.dumps({"images": [{"file_name": "a.png"}]}, indent=2), "list.json")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(deadline=None, print_blob=True)
@given(st.lists(st.tuples(texts.filter(lambda text: text.strip()), st.none() | st.integers(0, 9))), st.booleans())
def test_round_trip_is_lossless(rows: list[tuple[str, int | None]], ascii_only: bool):
    text = "\n".join(json.dumps({"path": path, "label": label}, ensure_ascii=ascii_only) for path, label in rows)
    assert firsts(text, "list.jsonl") == rows
