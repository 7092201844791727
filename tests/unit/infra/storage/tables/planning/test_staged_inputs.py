"""Listed files that no batch holds come out once each and in order, no matter how many there are."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.storage.input_files import NOT_THERE
from infra.storage.tables.planning import staged_inputs
from infra.storage.tables.planning.index import INDEX_SCHEMA
from infra.storage.tables.planning.staged_inputs import FILE_SCHEMA, UNUSABLE, PlannedFiles, StagedInputs

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


def segment(path: Path, *rows: tuple[str, str, str, int, int]) -> Path:
    """Write a segment of the index."""
    entries = [dict(zip(INDEX_SCHEMA.names, row, strict=True)) for row in sorted(rows)]
    pq.write_table(pa.Table.from_pylist(entries, schema=INDEX_SCHEMA), path)
    return path


def staged(folder: Path, *batches: list[File]) -> StagedInputs:
    inputs = StagedInputs(folder)
    inputs.stage(map(files, batches))
    return inputs


def committed(*paths: Path) -> PlannedFiles:
    """Return the files that the plans of committed batches hold."""
    return PlannedFiles("1", plans=dict(enumerate(paths, 1)))


def new_files(folder: Path, *batches: list[File], done: list[Path] | None = None) -> list[File]:
    compared = staged(folder, *batches).compare(committed(*(done or [])))
    found = [row for batch in compared.new_files() for row in batch.to_pylist()]
    return [(row["uri"], row["fingerprint"], row["label"]) for row in found]


def images_done(folder: Path, listed: list[File], *plans: Path) -> int:
    return staged(folder, listed).compare(committed(*plans)).done.images


def test_files_come_in_the_order_of_their_uris(tmp_path: Path):
    uris = ["file:///a b", "file:///a#1", "file:///a/b", "file:///aB", "file:///ab", "file:///größe", "file:///图"]
    listed: list[File] = [(uri, "1", None) for uri in uris]
    assert new_files(tmp_path, listed[::-1][:3], listed[::-1][3:]) == listed


def test_files_come_back_as_they_were_listed(tmp_path: Path):
    listed: list[File] = [("file:///a", "1", 3), ("file:///b", "2", None)]
    assert list(staged(tmp_path, listed).compare(PlannedFiles("1")).new_files()) == [files(listed)]


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
    done = plans(tmp_path, [("file:///a", "1", 1)])
    assert list(staged(tmp_path, [("file:///a", "1", None)]).compare(committed(*done)).new_files()) == []


def test_files_can_be_compared_again_with_other_plans(tmp_path: Path):
    inputs = staged(tmp_path, [("file:///a", "1", None), ("file:///b", "1", None)])
    for done, expected in (([], 2), (plans(tmp_path, [("file:///a", "1", 1)]), 1)):
        assert sum(map(len, inputs.compare(committed(*done)).new_files())) == expected


def test_only_the_listed_files_stay_on_disk(tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    new_files(tmp_path / "scratch", [("file:///a", "1", None)], done=plans(tmp_path, [("file:///a", "1", 1)]))
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["listed.parquet"]


def test_planned_images_of_listed_files_are_counted(tmp_path: Path):
    pieces = [
        ("file:///a.tar", "1", 10),
        ("file:///a.tar", "1", 5),  # another piece of it
        ("file:///b", "1", 1),
        ("file:///c", "another version", 1),
        ("file:///not-listed", "1", 1),
    ]
    listed: list[File] = [("file:///a.tar", "1", None), ("file:///b", "1", None), ("file:///c", "1", None)]
    assert images_done(tmp_path, listed, *plans(tmp_path, pieces)) == 16


def test_images_of_a_file_listed_twice_are_counted_once(tmp_path: Path):
    listed: list[File] = [("file:///a", "1", None), ("file:///a", "1", 4)]
    assert images_done(tmp_path, listed, *plans(tmp_path, [("file:///a", "1", 1)])) == 1


def test_no_images_are_counted_if_plans_hold_none(tmp_path: Path):
    listed: list[File] = [("file:///a", "1", None)]
    assert images_done(tmp_path, listed) == 0
    assert images_done(tmp_path, listed, *plans(tmp_path, [("file:///b", "1", 1)])) == 0


def test_images_of_batches_in_progress_are_planned_but_not_done(tmp_path: Path):
    [plan] = plans(tmp_path, [("file:///a", "1", 5)])
    compared = staged(tmp_path, [("file:///a", "1", None)]).compare(PlannedFiles("1", plans={1: plan}, unfinished=[1]))
    assert (list(compared.new_files()), compared.done.images) == ([], 0)


# Segments of the index


def test_files_of_segments_and_plans_do_not_come(tmp_path: Path):
    [plan] = plans(tmp_path, [("file:///b", "1", 1)])
    segments = [segment(tmp_path / f"{name}.parquet", ("1", f"file:///{name}", "1", 1, 2)) for name in "ac"]
    inputs = staged(tmp_path, [(f"file:///{name}", "1", None) for name in "abcd"])
    compared = inputs.compare(PlannedFiles("1", segments=segments, plans={2: plan}))
    assert [row["uri"] for batch in compared.new_files() for row in batch.to_pylist()] == ["file:///d"]
    assert compared.done.images == 5


def test_segment_holds_files_of_one_model_version_only(tmp_path: Path):
    rows = segment(tmp_path / "segment.parquet", ("1", "file:///a", "1", 1, 1), ("10", "file:///b", "1", 2, 1))
    inputs = staged(tmp_path, [("file:///a", "1", None), ("file:///b", "1", None)])
    found = {
        version: [
            row["uri"]
            for batch in inputs.compare(PlannedFiles(version, segments=[rows])).new_files()
            for row in batch.to_pylist()
        ]
        for version in ("1", "10", "2")
    }
    assert found == {"1": ["file:///b"], "10": ["file:///a"], "2": ["file:///a", "file:///b"]}


def test_unfinished_batches_of_a_segment_are_planned_but_not_done(tmp_path: Path):
    rows = segment(tmp_path / "segment.parquet", ("1", "file:///a", "1", 7, 3), ("1", "file:///b", "1", 8, 4))
    inputs = staged(tmp_path, [("file:///a", "1", None), ("file:///b", "1", None)])
    compared = inputs.compare(PlannedFiles("1", segments=[rows], unfinished=[8, 9]))
    assert (list(compared.new_files()), compared.done.images) == ([], 3)


# Superseded files


def test_new_version_of_a_file_is_superseding(tmp_path: Path):
    done = plans(tmp_path, [("file:///a.tar", "1", 3), ("file:///a.tar", "1", 3), ("file:///b", "1", 1)])
    listed: list[File] = [("file:///a.tar", "2", None), ("file:///b", "1", None), ("file:///c", "1", None)]
    assert staged(tmp_path, listed).compare(committed(*done)).superseded == 1


def test_file_whose_version_is_planned_is_not_superseding(tmp_path: Path):
    done = plans(tmp_path, [("file:///a", "1", 1)], [("file:///a", "2", 1)])
    assert staged(tmp_path, [("file:///a", "1", None)]).compare(committed(*done)).superseded == 0


# Versions of a file


@pytest.mark.parametrize("listed", ["1", "1+", "1+2"])
def test_fingerprint_without_label_file_counts_for_any_label_file(tmp_path: Path, listed: str):
    done = plans(tmp_path, [("file:///a", "1", 1)])
    assert new_files(tmp_path, [("file:///a", listed, None)], done=done) == []


@pytest.mark.parametrize("listed", ["1+", "1+3", "10+2", "1"])
def test_file_with_another_label_file_comes_again(tmp_path: Path, listed: str):
    done = plans(tmp_path, [("file:///a", "1+2", 1)])
    assert new_files(tmp_path, [("file:///a", listed, None)], done=done) == [("file:///a", listed, None)]


@pytest.mark.parametrize("kind", ["image", UNUSABLE])
def test_listed_file_that_is_gone_has_no_new_version(tmp_path: Path, kind: str):
    done = plans(tmp_path, [("file:///a", "1", 3)])
    inputs = StagedInputs(tmp_path)
    fingerprint = NOT_THERE if kind == "image" else "permission: denied to request 47"
    row = {"uri": "file:///a", "fingerprint": fingerprint, "kind": kind, "size": 0, "label": None}
    inputs.stage([pa.RecordBatch.from_pylist([row], schema=FILE_SCHEMA)])
    compared = inputs.compare(committed(*done))
    assert (list(compared.new_files()), compared.done.images) == ([], 3)


# Files that are tried again


QUARANTINE = ("uri", "number", "images", "retryable", "uncertain")


def retried(
    folder: Path,
    listed: list[File],
    planned: list[Path],
    quarantined: list[tuple[str, int, int, int, int]],
    *,
    readable: str = "",
    retry_all: bool = False,
) -> tuple[list[str], int]:
    """Return the names of the files to try again, and how many images are done apart from these.

    Args:
        folder: folder for all files.
        listed: the listed files.
        planned: plans of committed batches.
        quarantined: rows of `write_quarantined_files`.
        readable: names of the files that a look finds readable.
        retry_all: try all files again that have images in quarantine.
    """
    path = folder / "quarantined.parquet"
    rows = [dict(zip(QUARANTINE, row, strict=True)) for row in quarantined]
    pq.write_table(pa.Table.from_pylist(rows), path)
    held = PlannedFiles("1", plans=dict(enumerate(planned, 1)), quarantined=path)
    compared = staged(folder, listed).compare(held, retry_all=retry_all)
    list(compared.new_files())

    def look(files: pa.RecordBatch) -> pa.Array:
        return pa.array([uri[-1] in readable for uri in files.column("uri").to_pylist()])

    found = [uri[-1] for batch in compared.retries(look) for uri in batch.column("uri").to_pylist()]
    return found, compared.done.images


LISTED: list[File] = [(f"file:///{name}", "1", None) for name in "abcd"]


def test_files_of_the_place_that_can_be_read_are_tried_again(tmp_path: Path):
    planned = plans(tmp_path, [(uri, "1", 1) for uri, _, _ in LISTED])
    rows = [("file:///a", 1, 1, 0, 0), ("file:///b", 1, 1, 1, 0), ("file:///c", 1, 1, 1, 0)]
    assert retried(tmp_path, LISTED, planned, rows, readable="abd") == (["b"], 3)


def test_all_files_in_quarantine_are_tried_again_on_request(tmp_path: Path):
    planned = plans(tmp_path, [(uri, "1", 2) for uri, _, _ in LISTED])
    rows = [("file:///a", 1, 1, 0, 0), ("file:///b", 1, 2, 2, 2)]
    assert retried(tmp_path, LISTED, planned, rows, retry_all=True) == (["a", "b"], 4)


def test_file_is_not_tried_again_after_it_was_predicted(tmp_path: Path):
    planned = plans(tmp_path, [("file:///a", "1", 1)], [("file:///a", "1", 1)])
    for retry_all in (False, True):
        rows = [("file:///a", 1, 1, 1, 0)]
        assert retried(tmp_path, LISTED[:1], planned, rows, readable="a", retry_all=retry_all) == ([], 1)


def test_reason_beyond_a_look_is_tried_again_once(tmp_path: Path):
    planned = plans(tmp_path, [("file:///a", "1", 1), ("file:///b", "1", 1)], [("file:///b", "1", 1)])
    rows = [("file:///a", 1, 1, 1, 1), ("file:///b", 1, 1, 1, 1), ("file:///b", 2, 1, 1, 1)]
    assert retried(tmp_path, LISTED[:2], planned, rows, readable="ab") == (["a"], 1)


def test_retries_come_once_each_and_in_order_from_many_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(staged_inputs, "RANGE_FILES", 1)
    planned = plans(tmp_path, [(uri, "1", 1) for uri, _, _ in LISTED])
    rows = [(uri, 1, 1, 1, 0) for uri, _, _ in LISTED]
    assert retried(tmp_path, [*LISTED[::-1], *LISTED], planned, rows, readable="abcd") == (list("abcd"), 0)


def test_memory_does_not_grow_with_the_files_in_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """DuckDB raises an error if a query takes more memory than it may have."""
    monkeypatch.setattr(staged_inputs, "_MEMORY", "64MB")
    count = 600_000
    uris = pa.array([f"file:///{'folder/' * 6}{number:06d}" for number in range(count)])
    ones, text, images = (pa.repeat(pa.scalar(value), count) for value in (1, "1", "image"))
    plan, quarantined = tmp_path / "plan.parquet", tmp_path / "quarantined.parquet"
    pq.write_table(pa.table({"uri": uris, "fingerprint": text, "rows": ones}), plan)
    pq.write_table(pa.table(dict(zip(QUARANTINE, (uris, ones, ones, ones, ones), strict=True))), quarantined)
    listed = pa.table([uris, text, images, ones, pa.nulls(count, pa.int16())], schema=FILE_SCHEMA)
    inputs = StagedInputs(tmp_path)
    inputs.stage(listed.to_batches(16_384))
    compared = inputs.compare(PlannedFiles("1", plans={1: plan}, quarantined=quarantined), retry_all=True)
    assert sum(len(batch) for batch in compared.retries(lambda _: pytest.fail("no file needs a look"))) == count


# Names and sizes


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


@settings(deadline=None, print_blob=True, max_examples=8)
@given(listed=any_files, done=any_files, range_files=st.integers(1, 8))
def test_comparing_in_ranges_gives_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, listed: list[File], done: list[File], range_files: int
):
    folder = tmp_path_factory.mktemp("staged")
    planned = plans(folder / "done", [(uri, fingerprint, 1) for uri, fingerprint, _ in done])
    batches = [listed[first : first + 3] for first in range(0, len(listed), 3)]
    expected = new_files(folder, *batches, done=planned)
    inputs = staged(folder, *batches)
    done_images = inputs.compare(committed(*planned)).done.images
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(staged_inputs, "RANGE_FILES", range_files)
        found = new_files(folder, *batches, done=planned)
        assert inputs.compare(committed(*planned)).done.images == done_images
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
    inputs = StagedInputs(tmp_path)
    inputs.stage([pa.record_batch([*columns, pa.nulls(count, pa.int16())], schema=FILE_SCHEMA)])
    found = [uri for batch in inputs.compare(PlannedFiles("1")).new_files() for uri in batch.column("uri").to_pylist()]
    assert found == [f"file:///{number:09d}" for number in range(count)]
