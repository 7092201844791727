"""Each line of a text list is an entry, with every location and label that it can stand for."""

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.errors import InvalidDataset
from fmnist_model.formats.lists import lines
from tests.unit.fmnist_model.formats.lists.read import ORIGIN, entries, lasts, locations, reasons

# Lines


def test_lines_are_locations():
    assert locations("s3://b/1.png\n/data/2.png\n../3.png\n") == ["s3://b/1.png", "/data/2.png", "../3.png"]


def test_last_line_needs_no_newline():
    assert locations("1.png\n2.png") == ["1.png", "2.png"]


def test_blank_lines_and_comments_are_skipped():
    assert locations("\n# cats\n1.png\n   \n\t\n#2.png\n3.png#row=4\n\n") == ["1.png", "3.png#row=4"]


def test_entry_has_the_number_of_its_line():
    assert [entry.row for entry in entries("\n# cats\n1.png\n\n2.png\n")] == [3, 5]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_line_endings_of_every_system_are_removed(name: str, ending: str):
    assert locations(ending.join(["a/1.png", "a/2.png", "", "a/3.png", ""]), name) == ["a/1.png", "a/2.png", "a/3.png"]


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_location_is_returned_verbatim(name: str):
    texts = [
        "a/100%25.png",
        "a/größe 36.png",
        "a/靴.png",
        "a/x\u2028y.png",
        "a/x\x85y.png",
        "a/x\x0cy.png",
        "a/ b.png ",
        "~/a.png",
        "C:\\b.png",
    ]
    assert locations("\n".join(texts), name) == texts


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.tsv", "list.jsonl", "list.lst"])
def test_empty_list_has_no_entries(name: str):
    assert entries("", name) == []
    assert entries("\n\n", name) == []


line_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), min_size=1)


@settings(deadline=None, print_blob=True)
@given(st.lists(line_texts.filter(lambda line: line.strip() and line[0] not in "#\ufeff")), st.integers(1, 50))
def test_line_that_crosses_blocks_is_read_whole(texts: list[str], block_bytes: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        assert [entry.readings[0].location for entry in entries("\n".join(texts), "list.lst")] == texts


# Encodings

WORDS = "größe/1.png\nschuhe/靴.png\n"
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("block_bytes", [1, 7, 4096])
def test_encoding_is_told_by_the_byte_order_mark(encoding: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    assert locations(MARKS[encoding] + WORDS.encode(encoding)) == WORDS.split()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_recognized(encoding: str):
    assert locations(("images/größe.png\r\n" * 3).encode(encoding)) == ["images/größe.png"] * 3


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_bytes_that_are_not_utf8_are_read_as_windows_1252(name: str):
    written = ["größe/1.png", "größe/2\u20133.png", "größe/靴.png"]
    texts = [f'"{text}"' if name == "list.jsonl" else text for text in written]
    data = [texts[0].encode("latin-1"), texts[1].encode("cp1252"), texts[2].encode()]
    assert locations(b"\n".join(data), name) == written


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"PAR1\xff\0\0\0"])
@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_file_that_is_not_text_is_refused(name: str, data: bytes):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*line 1 "):
        entries(data, name)


# Labels


LABELS = [
    *(("3", 3), ("3.0", 3), ("3.000000", 3), ("Bag", 8), ("bag", 8), ("Ankle boot", 9), ("ankle_boot", 9)),
    *(("T-shirt/top", 0), ("t-shirt", 0), ("TROUSER", 1), ("10", None), ("nan", None)),
]


@pytest.mark.parametrize("separator", [" ", "  ", "\t", ",", ", ", ";", "|", " \t "])
@pytest.mark.parametrize(("text", "label"), LABELS)
def test_line_can_be_a_location_and_a_label(separator: str, text: str, label: int | None):
    line = f"val/my cat 1.png{separator}{text}"
    [entry] = entries(line)
    assert entry.readings[0] == (line, None)
    assert ("val/my cat 1.png", label) in [(location.strip(), label) for location, label in entry.readings]


@pytest.mark.parametrize("label", ["10", "999", "-1", "+4711"])
def test_class_of_another_dataset_is_no_label_but_is_not_part_of_the_path(label: str):
    assert lasts(f"a.png {label}") == [("a.png", None)]


@pytest.mark.parametrize("line", ["my cat", "a.png copy", "a.png v3", "a 3/b.png", "2024/12 31/x", "a,b.png"])
def test_words_that_are_no_label_stay_in_the_path(line: str):
    assert [entry.readings for entry in entries(line)] == [((line, None),)]


def test_label_of_any_text_can_follow_a_tab():
    assert lasts("a b.png\tcat") == [("a b.png", None)]


def test_label_can_come_before_a_tab():
    assert lasts("3\ta b.png\nBag\tc.png") == [("a b.png", 3), ("c.png", 8)]


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_around_the_path_are_removed(quote: str):
    text = f"{quote}my cat.png{quote}\n{quote}my cat.png{quote} 4\n{quote}my cat.png{quote}\t4\n"
    assert lasts(text) == [("my cat.png", None), ("my cat.png", 4), ("my cat.png", 4)]


def test_index_label_and_path_of_mxnet_are_told_apart():
    text = "0\t3.000000\tval/a b.png\n17\t9\tval/c.png\n5\t2.0\t1.5\tval/several.png\n"
    assert lasts(text, "list.lst") == [("val/a b.png", 3), ("val/c.png", 9), ("val/several.png", None)]


paths = st.text(st.characters(categories=["L", "N", "P", "Zs"], exclude_characters="\"'"), min_size=1, max_size=30)


@settings(deadline=None, print_blob=True)
@given(
    paths.map(lambda path: f"x{path.strip()}.png"),
    st.sampled_from([" ", "\t", ",", ";", "|"]),
    st.integers(0, 9),
    st.booleans(),
)
def test_path_and_label_survive_the_round_trip(path: str, separator: str, label: int, by_name: bool):
    [entry] = entries(f"{path}{separator}{CLASS_NAMES[label] if by_name else label}")
    assert (path, label) in entry.readings


def test_text_with_a_header_of_columns_is_read_as_csv():
    assert lasts("# made by hand\nlabel;image_path\n3;a b.png\n", "list.txt") == [("a b.png", 3)]


def test_single_word_in_the_first_line_may_be_a_header():
    assert [entry.may_be_header for entry in entries("image_path\na.png\npath\n")] == [True, False, False]


def test_label_column_of_a_text_list_is_refused():
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*'target'"):
        entries("a.png", "list.txt", label_column="target")


# Lines that can't be read


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.tsv", "list.jsonl", "list.lst"])
@pytest.mark.parametrize("bad", [b"a\0b.png", b"x" * 2_000_000, b"x" * 10_000_000], ids=["NUL", "2 MB", "10 MB"])
def test_unusable_line_does_not_stop_the_others(name: str, bad: bytes):
    rest = (
        [b'"a/1.png"', b'"a/2.png"', bad, b'"a/3.png"']
        if name == "list.jsonl"
        else [b"a/1.png", b"a/2.png", bad, b"a/3.png"]
    )
    found = entries(b"\n".join(rest), name)
    assert [entry.row for entry in found] == [1, 2, 3, 4]
    assert reasons(b"\n".join(rest), name) == {3: "damaged"}
    assert "3" in found[2].reason


def test_line_numbers_count_across_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 100)
    assert reasons(b"12345.png\n" * 1234 + b"\0\n") == {1235: "damaged"}


def test_location_that_is_longer_than_any_path_is_unusable():
    assert reasons(f"a.png\n{'x' * 9000}.png\n") == {2: "damaged"}
