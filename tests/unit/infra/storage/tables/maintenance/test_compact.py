"""Compaction keeps the newest row of each image, next to commits, other compactions and kills."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import RequestError
from infra.storage.keys import books_folder, quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import read_books
from infra.storage.tables.delta import DeltaSnapshot
from infra.storage.tables.maintenance.compact import Compacted, compact
from infra.storage.tables.maintenance.rewrite import repeat_until_committed
from infra.storage.tables.parts import PartFile, statistics_of
from tests.unit.infra.storage.tables.committed_tables import (
    SCHEMAS,
    TABLE,
    commit,
    commit_planned,
    finish_shard,
    image,
    images,
    killed_at_random,
    opened,
    parts,
    plan_batch,
    rows,
    uris,
)

QUARANTINE = quarantine_folder(TABLE)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "store").as_uri())


def compacted(store: ObjectStore) -> Compacted:
    return compact(store, TABLE, SCHEMAS)


def compact_root(root: str) -> None:
    compacted(open_store(root))


def test_small_batches_become_one_part_with_all_rows(store: ObjectStore) -> None:
    committed = [
        commit(store, number, images(2 * number, 2 * number + 1), images(100 + number)) for number in range(1, 6)
    ]
    before, before_quarantine = rows(store), rows(store, QUARANTINE)

    result = compacted(store)

    assert (result.batches_merged, result.parts_before, result.parts_after) == (4, 10, 2)
    newest = committed[-1].batch
    assert rows(store) == [row | {"batch": newest} for row in before]
    assert rows(store, QUARANTINE) == [row | {"batch": newest} for row in before_quarantine]
    assert [entry.compacted_into for entry in read_books(store, TABLE)] == [newest] * 4 + [None]


def test_merged_batches_still_exist_with_their_books(store: ObjectStore) -> None:
    committed = [commit(store, number, images(number)) for number in range(1, 4)]

    compacted(store)

    snapshot = opened(store, table_folder(TABLE))
    assert all(snapshot.holds(books.batch) for books in committed)
    unchanged = {"compacted_into": None}
    assert [entry.model_copy(update=unchanged) for entry in read_books(store, TABLE)] == committed


def test_second_compaction_changes_nothing(store: ObjectStore) -> None:
    for number in range(1, 4):
        commit(store, number, images(number), images(10 + number))
    compacted(store)
    before = [
        opened(store, folder).table.version() for folder in (table_folder(TABLE), QUARANTINE, books_folder(TABLE))
    ]

    result = compacted(store)

    assert result == Compacted(0, 2, 2)
    folders = (table_folder(TABLE), QUARANTINE, books_folder(TABLE))
    assert [opened(store, folder).table.version() for folder in folders] == before


def test_compaction_of_a_compacted_table_takes_new_batches_along(store: ObjectStore) -> None:
    for number in range(1, 4):
        commit(store, number, images(number))
    compacted(store)
    newest = [commit(store, number, images(number)) for number in range(4, 6)][-1]

    compacted(store)

    assert {row["batch"] for row in rows(store)} == {newest.batch}
    assert uris(store) == images(1, 2, 3, 4, 5)
    assert [entry.compacted_into for entry in read_books(store, TABLE)] == [newest.batch] * 4 + [None]


def test_of_several_rows_of_an_image_the_newest_stays(store: ObjectStore) -> None:
    commit(store, 1, images(1, 2))
    commit(store, 2, images(2, 3))
    commit(store, 3, images(3))

    compacted(store)

    assert [(row["image"], row["file_version"], row["predicted_class"]) for row in rows(store)] == [
        (image(1), 1, 1),
        (image(2), 2, 2),
        (image(3), 3, 3),
    ]


def test_batches_of_other_models_stay_apart(store: ObjectStore) -> None:
    committed = [commit(store, number, images(number % 2), model=1 + number % 2) for number in range(1, 5)]

    compacted(store)

    assert [(row["batch"], row["model_version"]) for row in rows(store)] == [
        (committed[3].batch, "1"),
        (committed[2].batch, "2"),
    ]


def test_batch_in_progress_separates_older_from_newer_rows(store: ObjectStore) -> None:
    commit(store, 1, images(1))
    second = commit(store, 2, images(2))
    plan = plan_batch(store, 3, images(1))
    commit(store, 4, images(4))
    fifth = commit(store, 5, images(5))

    compacted(store)

    assert {row["image"]: row["batch"] for row in rows(store)} == {
        **dict.fromkeys(images(1, 2), second.batch),
        **dict.fromkeys(images(4, 5), fifth.batch),
    }
    third = commit_planned(store, plan, finish_shard(store, plan, images(1), []))
    assert [row["batch"] for row in rows(store) if row["image"] == image(1)] == [second.batch, third.batch]


def test_batches_committed_during_a_compaction_are_kept(store: ObjectStore) -> None:
    for number in range(1, 9):
        commit(store, number, images(number), images(100 + number))

    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(compacted, store) for _ in range(2)]
        for number in range(9, 17):
            commit(store, number, images(number), images(100 + number))
        for found in waiting:
            found.result()
    compacted(store)

    assert uris(store) == images(*range(1, 17))
    assert uris(store, QUARANTINE) == images(*range(101, 117))
    assert (len(parts(store)), len(read_books(store, TABLE))) == (1, 16)


@pytest.mark.slow
def test_killed_compactions_lose_no_row_and_the_next_one_finishes(store: ObjectStore) -> None:
    for number in range(1, 25):
        commit(store, number, images(number), images(100 + number))

    for seed in range(5):
        killed_at_random(seed, 0.4, compact_root, store.root)
        assert uris(store) == images(*range(1, 25))
        assert uris(store, QUARANTINE) == images(*range(101, 125))
        assert len(read_books(store, TABLE)) == 24
    compacted(store)

    assert (len(parts(store)), len(parts(store, QUARANTINE)), len(parts(store, books_folder(TABLE)))) == (1, 1, 1)
    assert uris(store) == images(*range(1, 25))


def test_rows_that_a_killed_compaction_left_behind_follow(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = [commit(store, number, images(number), images(100 + number)) for number in range(1, 4)]
    attempt, calls = DeltaSnapshot.replace, []

    def killed(*arguments: Any, **options: Any) -> bool:
        calls.append(1)
        if len(calls) == 3:  # the books and the predictions are committed, the quarantine is not
            raise KeyboardInterrupt
        return attempt(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(DeltaSnapshot, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            compacted(store)
    fourth = commit(store, 4, images(4))
    assert {row["batch"] for row in rows(store, QUARANTINE)} == {entry.batch for entry in committed}

    compacted(store)

    assert {row["batch"] for row in rows(store, QUARANTINE)} == {fourth.batch}
    assert uris(store, QUARANTINE) == images(101, 102, 103)


def test_maintenance_that_comes_second_starts_again(store: ObjectStore) -> None:
    commit(store, 1, images(1))
    seen: list[int] = []

    def overtaken_once(snapshot: DeltaSnapshot) -> bool:
        seen.append(snapshot.table.version())
        if len(seen) == 1:
            assert opened(store, table_folder(TABLE)).replace_all([], {}, data_change=False)
        return snapshot.replace_all([], {}, data_change=False)

    repeat_until_committed(store, table_folder(TABLE), overtaken_once)

    assert seen == [seen[0], seen[0] + 1]


def test_several_small_parts_of_one_batch_are_merged(store: ObjectStore) -> None:
    books = commit(store, 1, images(1))
    add_old_parts(store, books.batch, {"a": images(2, 3), "b": images(4)}, folder="_parts/")

    compacted(store)

    assert (len(parts(store)), uris(store)) == (1, images(1, 2, 3, 4))
    assert read_books(store, TABLE)[0].compacted_into is None


def test_parts_from_before_delta_come_out_in_the_current_schema(store: ObjectStore, tmp_path: Path) -> None:
    books = commit(store, 1, images(1))
    old = ["file:///a #1.jpg", "file:///b.tar#member=100%.png"]
    add_old_parts(store, books.batch, {"part-00000": old}, folder="")

    compacted(store)

    assert len(parts(store)) == 1
    part = parts(store)[0]
    assert part.startswith(f"_parts/batch={books.batch}/")
    found = pq.read_schema(tmp_path / "store" / table_folder(TABLE) / part)
    assert found.remove_metadata().equals(SCHEMAS.predictions.remove_metadata())
    migrated = [row for row in rows(store) if row["image"].startswith("file")]
    assert [row["image"] for row in migrated] == ["file:///a %231.jpg", "file:///b.tar#member=100%25.png"]
    assert {(row["file_version"], row["model_version"], len(row["probabilities"])) for row in migrated} == {
        (1, "1", 10)
    }


def test_unknown_table_is_refused(store: ObjectStore) -> None:
    with pytest.raises(RequestError) as error:
        compacted(store)

    assert TABLE in str(error.value)


def add_old_parts(store: ObjectStore, batch: str, files: dict[str, list[str]], *, folder: str) -> None:
    """Add parts to a batch whose rows are as they were before Delta Lake."""
    added = []
    for name, old in files.items():
        count = len(old)
        table = pa.table(
            {
                "image": old,
                "predicted_class": pa.array([1] * count, pa.int8()),
                "predicted_label": pa.array(["Trouser"] * count).dictionary_encode(),
                "confidence": pa.array([0.5] * count, pa.float32()),
                "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(np.full(10 * count, 0.1, np.float32)), 10),
                "label": pa.array([None] * count, pa.int8()),
                "model_version": pa.array(["1"] * count).dictionary_encode(),
            }
        )
        key = f"{folder}batch={batch}/{name}.parquet"
        with store.publish(f"{table_folder(TABLE)}/{key}") as stream:
            pq.write_table(table, stream)
        filesystem, path = store.arrow(f"{table_folder(TABLE)}/{key}")
        added.append(
            PartFile(
                name=key,
                size=filesystem.get_file_info(path).size,
                sha256="",
                etag="",
                rows=count,
                statistics=statistics_of(pq.read_metadata(path, filesystem=filesystem)),
            )
        )
    assert opened(store, table_folder(TABLE)).replace(batch, [], added, data_change=True)
