"""The index holds every file of every batch exactly once, in few segments."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from infra.storage.keys import index_key, plan_key
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.maintenance.leftovers import table_leftovers
from infra.storage.tables.planning import index_compaction
from infra.storage.tables.planning.batches import FOOTER, read_catalog
from infra.storage.tables.planning.index import (
    BATCHES,
    FANOUT,
    INDEX_SCHEMA,
    SegmentRange,
    aligned_ranges,
    choose_segments,
    list_segments,
    obsolete_segments,
)
from infra.storage.tables.planning.index_compaction import compact_index
from tests.unit.infra.storage.tables.numbered_batches import OPTIONS, add_batch, add_batches, commit_batches

File = tuple[str, str, int]
"""URI, fingerprint and number of images."""


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def compact(store: ObjectStore, scratch: Path) -> None:
    compact_index(store, read_catalog(store, "t"), scratch)


def ranges(*bounds: tuple[int, int]) -> list[SegmentRange]:
    return [SegmentRange(*bound) for bound in bounds]


def segment(store: ObjectStore, first: int, last: int) -> list[dict[str, Any]]:
    filesystem, path = store.arrow(index_key("t", first, last))
    rows: list[dict[str, Any]] = pq.read_table(path, filesystem=filesystem).to_pylist()
    return rows


# Ranges


@given(st.integers(0, 200_000))
def test_aligned_ranges_cover_all_but_the_last_few_batches(batches: int):
    found = list(aligned_ranges(batches))
    ends = [0, *(entry.last for entry in found)]
    assert [entry.first for entry in found] == [end + 1 for end in ends[:-1]]
    assert 0 <= batches - ends[-1] < BATCHES


@given(st.integers(0, 200_000))
def test_number_of_segments_grows_with_the_logarithm_of_the_batches(batches: int):
    levels, size = 1, BATCHES
    while size <= batches:
        levels, size = levels + 1, size * FANOUT
    assert len(list(aligned_ranges(batches))) <= (FANOUT - 1) * levels


@given(st.integers(0, 5_000))
def test_ranges_only_change_by_merging(batches: int):
    """So a segment is never written for batches that an existing one covers partly."""
    before, after = list(aligned_ranges(batches)), list(aligned_ranges(batches + 1))
    assert all(any(larger.covers(smaller) for larger in after) for smaller in before)


def test_ten_thousand_batches_take_at_most_13_segments():
    assert max(len(list(aligned_ranges(batches))) for batches in range(10_001)) == 13


def test_largest_segments_are_chosen():
    segments = ranges((1, 16), (17, 32), (33, 48), (49, 64), (1, 64), (65, 80))
    assert choose_segments(segments) == ranges((1, 64), (65, 80))


def test_segments_after_a_gap_are_not_chosen():
    assert choose_segments(ranges((1, 16), (33, 48))) == ranges((1, 16))
    assert choose_segments(ranges((17, 32))) == []


# Compaction


def test_few_batches_make_no_segment(store: ObjectStore, tmp_path: Path):
    add_batches(store, range(1, BATCHES), tmp_path)
    compact(store, tmp_path)
    assert list_segments(store, "t") == {}


def test_segment_holds_the_files_of_its_batches(store: ObjectStore, tmp_path: Path):
    add_batches(store, range(1, BATCHES + 1), tmp_path)
    compact(store, tmp_path)
    assert segment(store, 1, 16) == [
        {"model_version": "1", "uri": f"file:///{n:05d}.tar", "fingerprint": "1", "number": n, "images": n}
        for n in range(1, 17)
    ]


def test_four_segments_become_one(store: ObjectStore, tmp_path: Path):
    for number in range(1, 65):
        add_batches(store, [number], tmp_path)
        compact(store, tmp_path)
    assert sorted(list_segments(store, "t")) == sorted(ranges((1, 16), (1, 64), (17, 32), (33, 48)))
    assert [row["number"] for row in segment(store, 1, 64)] == list(range(1, 65))
    assert [found.range for found in read_catalog(store, "t").segments] == ranges((1, 64))


def test_many_batches_without_an_index_are_compacted_at_once(store: ObjectStore, tmp_path: Path):
    add_batches(store, range(1, 300), tmp_path)
    compact(store, tmp_path)
    assert sorted(list_segments(store, "t")) == ranges((1, 256), (257, 272), (273, 288))
    assert [row["number"] for row in segment(store, 1, 256)] == list(range(1, 257))


def test_segment_has_the_options_of_all_models(store: ObjectStore, tmp_path: Path):
    for number in range(1, 17):
        add_batch(store, number, [("file:///a", "1", 1)], tmp_path, version=f"{number % 3}")
    compact(store, tmp_path)
    assert read_catalog(store, "t").options == {"0": OPTIONS, "1": OPTIONS, "2": OPTIONS}


def test_container_in_many_pieces_is_one_row(store: ObjectStore, tmp_path: Path):
    add_batch(store, 1, [("file:///a.tar", "1", 10), ("file:///a.tar", "1", 5), ("file:///b", "1", 1)], tmp_path)
    add_batches(store, range(2, 17), tmp_path)
    compact(store, tmp_path)
    assert [(row["uri"], row["images"]) for row in segment(store, 1, 16) if row["number"] == 1] == [
        ("file:///a.tar", 15),
        ("file:///b", 1),
    ]


@pytest.mark.parametrize("chunk_rows", [1, 2, 3])
def test_container_whose_pieces_span_chunks_is_one_row(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int
):
    add_batch(store, 1, [("file:///a.tar", "1", 1)] * 7 + [("file:///b.tar", "1", 1)] * 2, tmp_path)
    add_batches(store, range(2, 17), tmp_path)
    monkeypatch.setattr(index_compaction, "CHUNK_ROWS", chunk_rows)
    compact(store, tmp_path)
    assert [(row["uri"], row["images"]) for row in segment(store, 1, 16) if row["number"] == 1] == [
        ("file:///a.tar", 7),
        ("file:///b.tar", 2),
    ]


def test_plan_that_is_not_sorted_is_compacted(store: ObjectStore, tmp_path: Path):
    """The URIs of upgraded plans are canonical, but still in the order of the old URIs."""
    add_batch(store, 1, [("file:///c", "1", 1), ("file:///a", "1", 1), ("file:///c", "1", 2)], tmp_path)
    add_batches(store, range(2, 17), tmp_path)
    compact(store, tmp_path)
    assert [(row["uri"], row["images"]) for row in segment(store, 1, 16) if row["number"] == 1] == [
        ("file:///a", 1),
        ("file:///c", 3),
    ]


any_batch = st.tuples(
    st.sampled_from(["1", "2", "10"]),
    st.lists(st.tuples(st.text("abß图", max_size=2), st.sampled_from("12")), min_size=1, max_size=6, unique=True),
)


@settings(deadline=None, print_blob=True, max_examples=5, phases=[Phase.generate])
@given(st.lists(any_batch, min_size=64, max_size=64), st.integers(1, 4))
def test_merged_segment_holds_every_file_in_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[str, list[tuple[str, str]]]], merge_rows: int
):
    folder = tmp_path_factory.mktemp("index")
    store = open_store(f"file://{folder}/store")
    expected = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index_compaction, "_MERGE_ROWS", merge_rows)
        patched.setattr(index_compaction, "_MERGED_AT_ONCE", 3)
        for number, (version, files) in enumerate(batches, 1):
            add_batch(store, number, [(uri, print_, 1) for uri, print_ in sorted(files)], folder, version=version)
            expected += [(version, uri, number, print_) for uri, print_ in files]
            if number % 16 == 0:
                compact(store, folder)
    rows = [
        tuple(row[name] for name in ("model_version", "uri", "number", "fingerprint")) for row in segment(store, 1, 64)
    ]
    assert sorted(rows) == sorted(expected)
    assert [row[:3] for row in rows] == sorted(row[:3] for row in rows)


def test_planners_that_compact_at_the_same_time_write_the_same_segment(store: ObjectStore, tmp_path: Path):
    add_batches(store, range(1, 65), tmp_path)
    folders = [tmp_path / f"{number}" for number in range(4)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda folder: compact(store, folder), folders))
    assert list(list_segments(store, "t")) == ranges((1, 64))
    assert [row["number"] for row in segment(store, 1, 64)] == list(range(1, 65))


def test_compaction_that_fails_is_logged_and_repeated(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    add_batches(store, range(1, 17), tmp_path)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(store, "publish", _raise)
        compact(store, tmp_path)
    assert (len(caplog.records), list_segments(store, "t")) == (1, {})
    compact(store, tmp_path)
    assert list(list_segments(store, "t")) == ranges((1, 16))


def test_deleted_segment_is_written_again(store: ObjectStore, tmp_path: Path):
    add_batches(store, range(1, 49), tmp_path)
    compact(store, tmp_path)
    before = read_catalog(store, "t")
    store.delete(index_key("t", 17, 32))
    assert read_catalog(store, "t").next_number == 49
    compact(store, tmp_path)
    assert read_catalog(store, "t") == before


def test_compaction_without_a_plan_does_not_fail(store: ObjectStore, tmp_path: Path):
    first, *_ = add_batches(store, range(1, 17), tmp_path)
    store.delete(plan_key("t", first.batch))
    compact(store, tmp_path)
    assert list_segments(store, "t") == {}


def test_compaction_leaves_no_files_in_scratch(store: ObjectStore, tmp_path: Path):
    add_batches(store, range(1, 65), tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    compact(store, scratch)
    assert list(scratch.iterdir()) == []


def test_footer_describes_the_segment(store: ObjectStore, tmp_path: Path):
    batches = add_batches(store, range(1, 17), tmp_path)
    commit_batches(store, batches[:-1])
    compact(store, tmp_path)
    filesystem, path = store.arrow(index_key("t", 1, 16))
    file = pq.read_metadata(path, filesystem=filesystem)
    footer = json.loads(file.metadata[FOOTER])
    assert file.schema.to_arrow_schema().remove_metadata() == INDEX_SCHEMA
    assert (footer["first"], footer["last"], footer["options"]) == (1, 16, {"1": OPTIONS})
    assert [entry["number"] for entry in footer["unfinished"]] == [16]


# Obsolete segments


def test_segments_that_a_larger_one_covers_are_obsolete(store: ObjectStore, tmp_path: Path):
    for number in range(1, 81):
        add_batches(store, [number], tmp_path)
        compact(store, tmp_path)
    obsolete = [stat.key for stat in obsolete_segments(store, "t")]
    assert sorted(obsolete) == [index_key("t", *bounds) for bounds in ((1, 16), (17, 32), (33, 48))]


def test_segment_is_obsolete_since_the_larger_one_was_written(store: ObjectStore, tmp_path: Path):
    add_batches(store, range(1, 17), tmp_path)
    compact(store, tmp_path)
    _make_older(tmp_path / "store" / index_key("t", 1, 16))
    before = datetime.now(UTC).timestamp() - 60
    add_batches(store, range(17, 65), tmp_path)
    compact(store, tmp_path)
    [stat] = obsolete_segments(store, "t")
    assert stat.modified.timestamp() > before


def test_index_without_its_obsolete_segments_is_complete(store: ObjectStore, tmp_path: Path):
    for number in range(1, 81):
        add_batches(store, [number], tmp_path)
        compact(store, tmp_path)
    before = read_catalog(store, "t")
    for stat in obsolete_segments(store, "t"):
        store.delete(stat.key)
    assert read_catalog(store, "t").segments == before.segments


def test_prune_finds_obsolete_segments_that_are_old_enough(store: ObjectStore, tmp_path: Path):
    for first in (1, 17, 33, 49):
        add_batches(store, range(first, first + 16), tmp_path)
        compact(store, tmp_path)
    year = timedelta(days=365)
    found = {
        age: [entry.kind for entry in table_leftovers(store, "t", datetime.now(UTC) - age)] for age in (-year, year)
    }
    assert found == {-year: ["index"], year: []}


def _make_older(path: Path) -> None:
    os.utime(path, (0, 0))


def _raise(key: str) -> Any:
    raise OSError(f"{key}: no space left on device")
