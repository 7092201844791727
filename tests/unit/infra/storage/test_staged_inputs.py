"""Listed files that no plan holds come out once each and in order, no matter how many there are."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infra.storage.staged_inputs import FILE_SCHEMA, StagedInputs

from infra.storage import staged_inputs

File = tuple[str, str, int | None]
"""URI, fingerprint, label."""


def files(some: list[File]) -> pa.RecordBatch:
    rows = [
        {"uri": uri, "fingerprint": fingerprint, "kind": "image", "size": len(uri), "label": label}
        for uri, fingerprint, label in some
    ]
    return pa.RecordBatch.from_pylist(rows, schema=FILE_SCHEMA)


def plans(folder: Path, *plans: list[tuple[str, str, int]]) -> list[Path]:
    """Write plans with URI, fingerprint and rows of each piece as files below a folder."""
    paths = []
    for number, rows in enumerate(plans):
        path = folder / f"batch={number}" / "_plan.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("uri", "fingerprint", "rows")
        kinds = pa.schema([("uri", pa.string()), ("fingerprint", pa.string()), ("rows", pa.int64())])
        pieces = [dict(zip(names, row, strict=True)) for row in rows]
        pq.write_table(pa.Table.from_pylist(pieces, schema=kinds), path)
        paths.append(path)
    return paths


def new_files(folder: Path, *batches: list[File], done: list[Path] | None = None) -> list[File]:
    staged = StagedInputs(folder)
    staged.stage(map(files, batches))
    found = [row for batch in staged.new_files(done or []) for row in batch.to_pylist()]
    return [(row["uri"], row["fingerprint"], row["label"]) for row in found]


def test_files_come_in_the_order_of_their_uris(tmp_path: Path):
    uris = ["file:///a b", "file:///a#1", "file:///a/b", "file:///aB", "file:///ab", "file:///größe", "file:///图"]
    listed: list[File] = [(uri, "1", None) for uri in uris]
    assert new_files(tmp_path, listed[::-1][:3], listed[::-1][3:]) == listed


def test_files_come_back_as_they_were_listed(tmp_path: Path):
    staged = StagedInputs(tmp_path)
    batch = files([("file:///a", "1", 3), ("file:///b", "2", None)])
    staged.stage([batch])
    assert list(staged.new_files([])) == [batch]


def test_file_listed_twice_comes_once(tmp_path: Path):
    listed: list[File] = [("file:///a", "1", None), ("file:///b", "1", None)]
    assert new_files(tmp_path, listed, listed, listed) == listed


def test_file_listed_twice_comes_with_its_label(tmp_path: Path):
    assert new_files(tmp_path, [("file:///a", "1", None)], [("file:///a", "1", 9)], [("file:///a", "1", None)]) == [
        ("file:///a", "1", 9)
    ]


def test_label_of_a_file_with_two_labels_does_not_depend_on_the_order(tmp_path: Path):
    one, other = ("file:///a", "1", 3), ("file:///a", "1", 4)
    assert new_files(tmp_path, [one, other]) == new_files(tmp_path, [other, one])


def test_planned_file_does_not_come(tmp_path: Path):
    done = plans(tmp_path, [("file:///a", "1", 1)])
    assert new_files(tmp_path, [("file:///a", "1", None), ("file:///b", "1", None)], done=done) == [
        ("file:///b", "1", None)
    ]


def test_planned_file_comes_in_another_version(tmp_path: Path):
    done = plans(tmp_path, [("file:///a", "1", 1)])
    assert new_files(tmp_path, [("file:///a", "2", None)], done=done) == [("file:///a", "2", None)]


def test_container_planned_in_many_pieces_does_not_come(tmp_path: Path):
    done = plans(tmp_path, [("file:///a.tar", "1", 10)] * 5)
    assert new_files(tmp_path, [("file:///a.tar", "1", None)], done=done) == []


def test_files_of_different_plans_do_not_come(tmp_path: Path):
    done = plans(tmp_path, [("file:///a", "1", 1)], [("file:///b", "1", 1)], [("file:///a", "2", 1)])
    listed: list[File] = [(f"file:///{name}", "1", None) for name in "abc"]
    assert new_files(tmp_path, listed, done=done) == [("file:///c", "1", None)]


def test_no_new_files_give_no_batch(tmp_path: Path):
    staged = StagedInputs(tmp_path)
    staged.stage([files([("file:///a", "1", None)])])
    assert list(staged.new_files(plans(tmp_path, [("file:///a", "1", 1)]))) == []


def test_files_can_be_compared_again_with_other_plans(tmp_path: Path):
    staged = StagedInputs(tmp_path)
    staged.stage([files([("file:///a", "1", None), ("file:///b", "1", None)])])
    for done, expected in (([], 2), (plans(tmp_path, [("file:///a", "1", 1)]), 1)):
        assert sum(map(len, staged.new_files(done))) == expected


def test_only_the_listed_files_stay_on_disk(tmp_path: Path):
    new_files(tmp_path, [("file:///a", "1", None)])
    assert [path.name for path in tmp_path.iterdir()] == ["listed.parquet"]


def test_planned_images_of_listed_files_are_counted(tmp_path: Path):
    staged = StagedInputs(tmp_path)
    staged.stage([files([("file:///a.tar", "1", None), ("file:///b", "1", None), ("file:///c", "1", None)])])
    pieces = [
        ("file:///a.tar", "1", 10),
        ("file:///a.tar", "1", 5),  # another piece of it
        ("file:///b", "1", 1),
        ("file:///c", "another version", 1),
        ("file:///not-listed", "1", 1),
    ]
    assert staged.images_done(plans(tmp_path, pieces)) == 16


def test_images_of_a_file_listed_twice_are_counted_once(tmp_path: Path):
    staged = StagedInputs(tmp_path)
    staged.stage([files([("file:///a", "1", None), ("file:///a", "1", 4)])])
    assert staged.images_done(plans(tmp_path, [("file:///a", "1", 1)])) == 1


def test_no_images_are_counted_if_plans_hold_none(tmp_path: Path):
    staged = StagedInputs(tmp_path)
    staged.stage([files([("file:///a", "1", None)])])
    assert staged.images_done([]) == staged.images_done(plans(tmp_path, [("file:///b", "1", 1)])) == 0


ODD_NAMES = ["two words", "it's", '"', "50%20", "größe", "a*b", "[1]", "a?b", "{a,b}", "$HOME", ";", "a=b"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_scratch_folder_can_have_any_name(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    assert new_files(tmp_path / name, [("file:///a", "1", None)]) == [("file:///a", "1", None)]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_folder_of_a_plan_can_have_any_name(tmp_path: Path, name: str):
    done = plans(tmp_path / name, [("file:///a", "1", 1)])
    assert new_files(tmp_path, [("file:///a", "1", None)], done=done) == []


any_files = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(["a", "b", "c"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=3)),
        st.sampled_from(["1", "2"]),
        st.none(),
    ),
    max_size=30,
)


@settings(deadline=None, print_blob=True, max_examples=40)
@given(listed=any_files, done=any_files, chunk_rows=st.sampled_from([1, 3, 65_536]))
def test_new_files_are_listed_files_without_planned_ones(
    tmp_path_factory: pytest.TempPathFactory, listed: list[File], done: list[File], chunk_rows: int
):
    folder = tmp_path_factory.mktemp("staged")
    held = {(uri, fingerprint) for uri, fingerprint, _ in done}
    expected = sorted({uri for uri, fingerprint, _ in listed if (uri, fingerprint) not in held})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(staged_inputs, "CHUNK_ROWS", chunk_rows)
        planned = plans(folder / "done", [(uri, fingerprint, 1) for uri, fingerprint, _ in done])
        found = new_files(folder, listed[:5], listed[5:], done=planned)
    assert [uri for uri, _, _ in found] == expected
    assert {(uri, fingerprint) for uri, fingerprint, _ in found}.isdisjoint(held)


@settings(deadline=None, print_blob=True, max_examples=15)
@given(listed=any_files, done=any_files, range_files=st.integers(1, 8))
def test_comparing_in_ranges_gives_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, listed: list[File], done: list[File], range_files: int
):
    folder = tmp_path_factory.mktemp("staged")
    planned = plans(folder / "done", [(uri, fingerprint, 1) for uri, fingerprint, _ in done])
    batches = [listed[first : first + 3] for first in range(0, len(listed), 3)]
    expected = new_files(folder, *batches, done=planned)
    staged = StagedInputs(folder)
    staged.stage(map(files, batches))
    images_done = staged.images_done(planned)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(staged_inputs, "RANGE_FILES", range_files)
        found = new_files(folder, *batches, done=planned)
        assert staged.images_done(planned) == images_done
    # If a file is listed in two versions, either may come.
    assert [uri for uri, _, _ in found] == [uri for uri, _, _ in expected]
    assert {(uri, fingerprint) for uri, fingerprint, _ in found} <= {(u, f) for u, f, _ in listed} - {
        (u, f) for u, f, _ in done
    }


def test_plans_that_span_ranges_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(staged_inputs, "RANGE_FILES", 1)
    batches: list[list[File]] = [[(f"file:///{name}", "1", None)] for name in "bdf"]
    done = plans(tmp_path, [(f"file:///{name}", "1", 1) for name in "abcdeg"])
    assert new_files(tmp_path, *batches, done=done) == [("file:///f", "1", None)]


def test_file_listed_more_often_than_a_chunk_has_rows_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(staged_inputs, "CHUNK_ROWS", 4)
    listed: list[File] = [("file:///a", "1", None)] * 10 + [("file:///b", "1", None)] * 3
    assert new_files(tmp_path, listed) == [("file:///a", "1", None), ("file:///b", "1", None)]


def test_more_files_than_a_row_group_holds_come_in_order(tmp_path: Path):
    count = 200_000
    uris = pa.array([f"file:///{(number * 7919) % count:09d}" for number in range(count)])
    ones = pa.repeat(pa.scalar("1"), count)
    columns = [uris, ones, pa.repeat(pa.scalar("image"), count), pa.repeat(pa.scalar(1, pa.int64()), count)]
    staged = StagedInputs(tmp_path)
    staged.stage([pa.record_batch([*columns, pa.nulls(count, pa.int8())], schema=FILE_SCHEMA)])
    found = [uri for batch in staged.new_files([]) for uri in batch.column("uri").to_pylist()]
    assert found == [f"file:///{number:09d}" for number in range(count)]
