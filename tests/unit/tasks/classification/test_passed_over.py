"""Counts of what a run passes over."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.classification.passed_over import OTHER_ENDING, PassedOver


def counted(*kinds: str) -> PassedOver:
    passed_over = PassedOver()
    for number, kind in enumerate(kinds):
        passed_over.add(kind, f"/images/{number}")
    return passed_over


def test_nothing_passed_over_has_no_text():
    assert PassedOver().text() == ""
    assert PassedOver().to_record() == {}
    assert PassedOver().total == 0


def test_undecodable_images_come_first_and_then_the_most_frequent_kind():
    passed_over = counted(".xml", ".docx", ".heic", ".docx")
    assert passed_over.text() == "4 files passed over: 1 .heic, 2 .docx, 1 .xml"
    assert list(passed_over.to_record().items()) == [(".heic", 1), (".docx", 2), (".xml", 1)]


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        (["hidden file"], "1 file passed over: 1 hidden file"),
        (["unreadable folder"], "1 entry passed over: 1 unreadable folder"),
        (["unreadable folder"] * 2, "2 entries passed over: 2 unreadable folders"),
        (["Parquet file without images"] * 2, "2 files passed over: 2 Parquet files without images"),
        (["name not in UTF-8"] * 2, "2 files passed over: 2 names not in UTF-8"),
    ],
)
def test_text_has_the_right_number(kinds: list[str], text: str):
    assert counted(*kinds).text() == text


def test_text_sums_up_the_rare_kinds():
    passed_over = counted(*(f".a{number}" for number in range(15)))
    assert passed_over.text().endswith("1 .a4, 5 others")
    assert len(passed_over.to_record()) == 15


def test_three_examples_of_a_kind_are_kept():
    assert counted(*[".docx"] * 5).kinds()[0].examples == ("/images/0", "/images/1", "/images/2")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("r\udce9sum\udce9.doc", "r\\xe9sum\\xe9.doc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines", "two\\nlines"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("größe 36", "größe 36"),
    ],
)
def test_example_is_safe_to_print(name: str, shown: str):
    passed_over = PassedOver()
    passed_over.add(".doc", name)
    assert passed_over.kinds()[0].examples == (shown,)


def test_long_example_keeps_its_end():
    passed_over = PassedOver()
    passed_over.add(".doc", "a" * 5000 + "/name.doc")
    (example,) = passed_over.kinds()[0].examples
    assert len(example) == 200
    assert example.endswith("/name.doc")


def test_memory_is_bounded_however_many_endings_there_are():
    passed_over = counted(*(f".{number}" for number in range(10_000)), "hidden file")
    assert passed_over.total == 10_001
    assert passed_over.to_record()[OTHER_ENDING] == 9_900
    assert passed_over.to_record()["hidden file"] == 1


@pytest.mark.parametrize("ending", [".averyveryverylongending", ".a b", ".\x1b[31m", ".\udce9", "."])
def test_odd_ending_has_no_kind_of_its_own(ending: str):
    assert counted(ending).to_record() == {OTHER_ENDING: 1}


def test_merged_counts_are_sums():
    passed_over = counted(".docx", ".docx", "hidden file")
    passed_over.merge(counted(".docx", ".xml"))
    assert passed_over.to_record() == {".docx": 3, ".xml": 1, "hidden file": 1}
    assert passed_over.kinds()[0].examples == ("/images/0", "/images/1", "/images/0")


def test_merging_many_endings_stays_bounded():
    passed_over = counted(*(f".a{number}" for number in range(80)))
    passed_over.merge(counted(*(f".b{number}" for number in range(80))))
    assert passed_over.total == 160
    assert passed_over.to_record()[OTHER_ENDING] == 60


def test_threads_lose_no_count():
    passed_over = PassedOver()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: [passed_over.add(".docx", "a") for _ in range(2_000)], range(8)))
    assert passed_over.to_record() == {".docx": 16_000}


def test_counts_can_be_pickled():
    copy = pickle.loads(pickle.dumps(counted(".docx", ".heic")))  # noqa: S301 (its own)
    assert copy.text() == "2 files passed over: 1 .heic, 1 .docx"
