"""Inputs are cut into shards of even work, and the plan doesn't depend on how the inputs are chunked."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from infra.errors import JobStopped
from infra.storage.keys import plan_key
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.planning.plan import (
    LARGEST_SHARD,
    PIECE_SCHEMA,
    SHARDS,
    SMALLEST_SHARD,
    BatchPlan,
    ShardInputs,
    cut_into_shards,
    find_plan,
    plan_files,
    shard_work,
    work_of,
    write_plan,
)
from tests.unit.tasks.classification.image_inputs import loose

Piece = tuple[str, int, int]
"""Kind, rows, bytes."""


def pieces(some: list[Piece]) -> pa.RecordBatch:
    """Pieces with different URIs and labels."""
    rows = [
        {
            "uri": f"file:///{number:06d}",
            "fingerprint": f"{size:x}-{number}",
            "kind": kind,
            "first_row": number,
            "rows": count,
            "offset": 2 * number,
            "size": size,
            "label": number % 11 if number % 11 < 10 else None,
        }
        for number, (kind, count, size) in enumerate(some)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=PIECE_SCHEMA)


def apart(batch: pa.RecordBatch, cuts: list[int]) -> list[pa.RecordBatch]:
    """Split rows into several batches, some of them empty."""
    bounds = [0, *sorted(cut % (len(batch) + 1) for cut in cuts), len(batch)]
    return [batch.slice(begin, end - begin) for begin, end in pairwise(bounds)]


def cut(batches: list[pa.RecordBatch], work: float) -> pa.Table:
    return pa.Table.from_batches(list(cut_into_shards(batches, work)))


def shard_sizes(shards: pa.Table) -> list[float]:
    """Add up the work of each shard, in order."""
    costs = np.concatenate([work_of(batch.drop_columns(["shard"])) for batch in shards.to_batches()])
    return np.bincount(shards.column("shard").to_numpy(), costs).tolist()


# Shards

any_pieces = st.lists(
    st.one_of(
        st.tuples(st.just("image"), st.just(1), st.one_of(st.just(500), st.integers(0, 2**40))),
        st.tuples(st.just("tar"), st.integers(1, 30_000), st.integers(0, 2**30)),
    ),
    min_size=1,
    max_size=60,
)
any_work = st.one_of(st.none(), st.floats(1, 1e7))
"""Work per shard. None stands for the default of `shard_work`."""
any_cuts = st.lists(st.integers(0, 100), max_size=5)


def work_or_default(some: list[Piece], work: float | None) -> float:
    return shard_work(float(work_of(pieces(some)).sum())) if work is None else work


@settings(deadline=None, print_blob=True)
@given(any_pieces, any_work)
def test_no_piece_is_lost_or_moved(some: list[Piece], work: float | None):
    shards = cut([pieces(some)], work_or_default(some, work))
    assert shards.drop_columns(["shard"]).combine_chunks().to_batches() == [pieces(some)]


@settings(deadline=None, print_blob=True)
@given(any_pieces, any_work)
def test_shards_are_numbered_in_order_without_gaps(some: list[Piece], work: float | None):
    numbers = cut([pieces(some)], work_or_default(some, work)).column("shard").to_pylist()
    assert numbers == sorted(numbers)
    assert sorted(set(numbers)) == list(range(len(set(numbers))))


@settings(deadline=None, print_blob=True)
@given(any_pieces, any_work)
def test_shards_differ_from_their_share_by_at_most_one_piece(some: list[Piece], work: float | None):
    share, largest = work_or_default(some, work), float(work_of(pieces(some)).max())
    sizes = shard_sizes(cut([pieces(some)], share))
    assert max(sizes) <= share + largest + 1e-6
    assert min(sizes[:-1], default=share) >= share - largest - 1e-6


@settings(deadline=None, print_blob=True)
@given(any_pieces)
def test_last_shard_is_as_large_as_the_others(some: list[Piece]):
    share, largest = work_or_default(some, None), float(work_of(pieces(some)).max())
    assert shard_sizes(cut([pieces(some)], share))[-1] >= share - largest - 1e-6


@settings(deadline=None, print_blob=True)
@given(any_pieces, any_work, any_cuts)
def test_shards_do_not_depend_on_how_the_pieces_are_chunked(some: list[Piece], work: float | None, cuts: list[int]):
    share = work_or_default(some, work)
    assert cut(apart(pieces(some), cuts), share).equals(cut([pieces(some)], share))


@pytest.mark.parametrize(
    ("images", "shards"),
    [(1, [1]), (4000, [4000]), (5999, [5999]), (6001, [3000, 3001]), (8000, [4000, 4000]), (40_000, [4000] * 10)],
)
def test_loose_images_are_split_evenly(images: int, shards: list[int]):
    files = loose(images)
    numbers = cut([files], shard_work(float(work_of(files).sum()))).column("shard").to_numpy()
    assert np.bincount(numbers).tolist() == shards


def test_piece_larger_than_a_share_is_a_shard_of_its_own():
    shards = cut([pieces([("tar", 1000, 0), ("tar", 5000, 0), ("tar", 1000, 0)])], 1000)
    assert shard_sizes(shards) == [1000, 5000, 1000]


def test_no_pieces_make_no_shards():
    assert list(cut_into_shards([], 1000)) == list(cut_into_shards([loose(0)], 1000)) == []


@pytest.mark.parametrize(
    ("total", "share"),
    [
        (1, 1),
        (SMALLEST_SHARD, SMALLEST_SHARD),
        (SMALLEST_SHARD * SHARDS, SMALLEST_SHARD),
        (100_000 * SHARDS, 100_000),
        (LARGEST_SHARD * SHARDS, LARGEST_SHARD),
        (LARGEST_SHARD * SHARDS * 10, LARGEST_SHARD),
    ],
)
def test_work_per_shard_grows_between_its_bounds(total: float, share: float):
    assert shard_work(total) == share


@settings(deadline=None, print_blob=True)
@given(st.floats(1, 1e13))
def test_total_work_is_a_whole_number_of_shards(total: float):
    shares = total / shard_work(total)
    assert shares == pytest.approx(round(shares))


def test_loose_file_is_more_work_than_an_image_in_a_container():
    single, contained = work_of(pieces([("image", 1, 600), ("tar", 1, 600)]))
    assert single > contained


def test_large_image_is_more_work_than_a_small_one():
    large, small = work_of(pieces([("image", 1, 10_000_000), ("image", 1, 600)]))
    assert large > 100 * small


# Plans in the store


def write(store: ObjectStore, scratch: Path, shards: list[pa.RecordBatch], **changed: Any) -> BatchPlan:
    arguments: dict[str, Any] = {
        "table": "t",
        "number": 1,
        "model_version": "1",
        "options": {"invert": "never"},
        "superseded": 0,
    }
    return write_plan(store, **(arguments | changed), inputs=shards, scratch=scratch)


@settings(deadline=None, print_blob=True, max_examples=20)
@given(some=any_pieces, cuts=any_cuts)
def test_batch_id_does_not_depend_on_how_the_inputs_arrive(
    tmp_path_factory: pytest.TempPathFactory, some: list[Piece], cuts: list[int]
):
    folder = tmp_path_factory.mktemp("plans")
    store = open_store(f"file://{folder}/store")
    [whole] = cut_into_shards([pieces(some)], 1000)
    plan = write(store, folder, [whole])
    written = store.read(plan_key("t", plan.batch))
    assert write(store, folder, apart(whole, cuts)) == plan
    assert store.read(plan_key("t", plan.batch)) == written


def test_batch_id_does_not_depend_on_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(f"file://{tmp_path}/store")
    shards = list(cut_into_shards([loose(1000)], 1000))
    expected = write(store, tmp_path, shards).batch
    monkeypatch.setattr("infra.storage.tables.planning.plan.CHUNK_ROWS", 7)
    assert write(store, tmp_path, shards).batch == expected


@pytest.mark.parametrize("column", ["shard", *PIECE_SCHEMA.names])
def test_batch_id_depends_on_every_column_of_the_inputs(tmp_path: Path, column: str):
    store = open_store(f"file://{tmp_path}/store")
    [shards] = cut_into_shards([pieces([("tar", 5, 100)] * 3)], 1e9)
    rows = shards.to_pylist()
    rows[2][column] = f"{rows[2][column]}x" if isinstance(rows[2][column], str) else rows[2][column] + 1
    other = pa.RecordBatch.from_pylist(rows, schema=shards.schema)
    assert write(store, tmp_path, [other]).batch != write(store, tmp_path, [shards]).batch


@pytest.mark.parametrize("changed", [{"number": 2}, {"model_version": "2"}, {"options": {"invert": "auto"}}])
def test_batch_id_depends_on_number_model_and_options(tmp_path: Path, changed: dict[str, Any]):
    store = open_store(f"file://{tmp_path}/store")
    shards = list(cut_into_shards([loose(3)], 1e9))
    assert write(store, tmp_path, shards, **changed).batch != write(store, tmp_path, shards).batch


def test_unknown_label_differs_from_label_0(tmp_path: Path):
    store = open_store(f"file://{tmp_path}/store")
    [shards] = cut_into_shards([loose(1)], 1e9)
    labelled = shards.set_column(8, shards.schema.field("label"), pa.array([0], pa.int16()))
    assert write(store, tmp_path, [labelled]).batch != write(store, tmp_path, [shards]).batch


def test_plan_is_read_back_as_it_was_written(tmp_path: Path):
    store = open_store(f"file://{tmp_path}/store")
    plan = write(store, tmp_path, list(cut_into_shards([loose(3)], 1e9)))
    assert (plan.number, plan.shards, plan.planned) == (1, 1, 3)
    assert find_plan(store, "t", plan.batch) == plan


def test_plans_of_a_remote_store_are_copied_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(f"file://{tmp_path}/store")
    batches = [write(store, tmp_path, list(cut_into_shards([loose(1 + n)], 1e9))).batch for n in range(40)]
    elsewhere = fs.SubTreeFileSystem(f"{tmp_path}/store", fs.LocalFileSystem())
    monkeypatch.setattr(store, "arrow", lambda key: (elsewhere, key))
    (tmp_path / "copies").mkdir()
    files = plan_files(store, "t", batches, tmp_path / "copies")
    assert [path.read_bytes() for path in files] == [store.read(plan_key("t", batch)) for batch in batches]
    files[0].write_bytes(b"not copied again")
    assert plan_files(store, "t", batches, tmp_path / "copies") == files
    assert files[0].read_bytes() == b"not copied again"


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_lost_plan_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool):
    store = open_store(f"file://{tmp_path}/store")
    batch = write(store, tmp_path, list(cut_into_shards([loose(3)], 1e9))).batch
    if remote:
        elsewhere = fs.SubTreeFileSystem(f"{tmp_path}/store", fs.LocalFileSystem())
        monkeypatch.setattr(store, "arrow", lambda key: (elsewhere, key))
    with pytest.raises(JobStopped) as error:
        plan_files(store, "t", [batch, "0" * 16], tmp_path)
    assert store.uri(plan_key("t", "0" * 16)) in str(error.value)


def test_batch_id_sorts_by_number(tmp_path: Path):
    store = open_store(f"file://{tmp_path}/store")
    shards = list(cut_into_shards([loose(3)], 1e9))
    batches = [write(store, tmp_path, shards, number=number).batch for number in (9, 10, 99, 100, 12_345_678)]
    assert sorted(batches) == batches


def test_missing_plan_is_none(tmp_path: Path):
    assert find_plan(open_store(f"file://{tmp_path}/store"), "t", "0" * 16) is None


@settings(deadline=None, print_blob=True, max_examples=30)
@given(some=any_pieces, work=st.floats(1, 1e6), chunk_rows=st.integers(1, 20))
def test_shard_reads_its_inputs_across_row_groups(
    tmp_path_factory: pytest.TempPathFactory, some: list[Piece], work: float, chunk_rows: int
):
    folder = tmp_path_factory.mktemp("plans")
    store = open_store(f"file://{folder}/store")
    shards = cut([pieces(some)], work)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("infra.storage.tables.planning.plan.CHUNK_ROWS", chunk_rows)
        plan = write(store, folder, shards.to_batches())
    filesystem, path = store.arrow(plan_key("t", plan.batch))
    assert pq.read_metadata(path, filesystem=filesystem).num_row_groups == -(-len(some) // chunk_rows)
    inputs = ShardInputs(store, plan)
    rows = shards.to_pylist()
    for shard in range(plan.shards):
        assert inputs.of(shard).to_pylist() == [row for row in rows if row["shard"] == shard]
