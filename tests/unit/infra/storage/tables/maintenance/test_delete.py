"""Deletion removes images from every file that holds or mentions them, and can be repeated after a kill."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import RequestError
from infra.storage.keys import plan_key, quarantine_folder, records_folder, report_key, table_folder, work_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import BatchBooks, read_books
from infra.storage.tables.maintenance.compact import compact
from infra.storage.tables.maintenance.delete import Deleted, delete_images
from infra.storage.tables.maintenance.image_match import image_match
from tests.unit.infra.storage.tables.committed_tables import (
    SCHEMAS,
    TABLE,
    commit,
    image,
    images,
    killed_at_random,
    parts,
    plan_batch,
    rows,
    uris,
    write_predictions,
)

QUARANTINE = quarantine_folder(TABLE)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "store").as_uri())


def deleted(store: ObjectStore, location: str, *, dry_run: bool = False) -> Deleted:
    return delete_images(store, TABLE, location, SCHEMAS, dry_run=dry_run)


def delete_from_root(root: str, location: str) -> None:
    deleted(open_store(root), location)


def write_report(store: ObjectStore, books: BatchBooks, text: str) -> str:
    key = report_key(TABLE, books.batch)
    with store.publish(key) as stream:
        stream.write(text.encode())
    return key


def files_with(store: ObjectStore, location: str) -> list[str]:
    """Return the keys of files outside the Delta logs that hold a URI, read as text or as Parquet."""
    found = []
    for stat in store.list(""):
        if stat.key.endswith(".parquet") and "_delta_log" not in stat.key:
            filesystem, path = store.arrow(stat.key)
            content = str(pq.read_table(path, filesystem=filesystem, partitioning=None).to_pylist())
        else:
            content = store.read(stat.key).decode(errors="replace")
        if location in content and "_delta_log" not in stat.key:
            found.append(stat.key)
    return sorted(found)


def test_image_is_gone_from_all_files_but_the_plan(store: ObjectStore) -> None:
    books = commit(store, 1, images(1, 2), images(3))
    report = write_report(store, books, image(1))

    result = deleted(store, image(1))

    assert (result.predictions, result.quarantine, result.batches) == (1, 0, [books.batch])
    assert uris(store) == images(2)
    assert uris(store, QUARANTINE) == images(3)
    assert store.stat(report) is None
    assert files_with(store, image(1)) == [plan_key(TABLE, books.batch)]


def test_quarantined_image_is_gone_from_the_books_as_well(store: ObjectStore) -> None:
    books = commit(store, 1, images(1), images(2, 3))
    assert books.reasons[0].example == image(2)

    result = deleted(store, image(2))

    assert (result.predictions, result.quarantine) == (0, 1)
    assert uris(store, QUARANTINE) == images(3)
    after = read_books(store, TABLE)[0]
    assert (after.reasons[0].example, after.quarantined) == ("", 2)
    assert files_with(store, image(2)) == [plan_key(TABLE, books.batch)]


def test_image_is_gone_from_parts_that_a_compaction_has_replaced(store: ObjectStore) -> None:
    committed = [commit(store, number, images(number, 10 + number)) for number in range(1, 4)]
    reports = [write_report(store, books, "") for books in committed]
    compact(store, TABLE, SCHEMAS)

    result = deleted(store, image(1))

    assert result.files == 1
    assert uris(store) == images(2, 3, 11, 12, 13)
    assert files_with(store, image(1)) == [plan_key(TABLE, committed[0].batch)]
    # The rows may have come from any of the merged batches.
    assert [store.stat(key) for key in reports] == [None] * 3


def test_parts_of_slower_attempts_are_removed(store: ObjectStore) -> None:
    plan = plan_batch(store, 1, images(9))
    books = commit(store, 2, images(1, 2))
    late = write_predictions(store, plan.model_copy(update={"batch": books.batch}), images(1, 2))
    unfinished = write_predictions(store, plan, images(9))

    deleted(store, image(1))

    assert store.stat(f"{table_folder(TABLE)}/{late.name}") is None
    assert store.stat(f"{table_folder(TABLE)}/{unfinished.name}") is not None


def test_files_from_before_delta_are_removed_as_well(store: ObjectStore) -> None:
    books = commit(store, 1, images(1), images(2))
    folder = f"{table_folder(TABLE)}/batch={books.batch}"
    for name, content in (
        (f"{folder}/_errors/part-00000.parquet", images(2)),
        (f"{folder}/part-00000.parquet", images(1)),
    ):
        with store.publish(name) as stream:
            pq.write_table(pa.table({"image": content}), stream)
    with store.publish(f"{folder}/_report/index.html") as stream:
        stream.write(image(2).encode())

    deleted(store, image(2))

    assert [stat.key for stat in store.list(f"{folder}/")] == [f"{folder}/part-00000.parquet"]


def test_other_batches_and_their_files_are_left_alone(store: ObjectStore) -> None:
    other = commit(store, 1, images(1), images(11))
    report = write_report(store, other, "")
    commit(store, 2, images(2))
    before = parts(store)

    deleted(store, image(2))

    assert [name for name in before if other.batch in name] == parts(store)
    assert store.stat(report) is not None
    assert len(list(store.list(f"{records_folder(TABLE, other.batch)}/"))) == 1


def test_container_stands_for_all_its_images(store: ObjectStore) -> None:
    inside = [f"s3://bucket/a.tar#member={name}" for name in ("x.png", "y.png")]
    commit(store, 1, [*inside, "s3://bucket/a.tar2"])

    assert deleted(store, "s3://bucket/a.tar").predictions == 2

    assert uris(store) == ["s3://bucket/a.tar2"]


def test_one_image_of_a_container_can_go(store: ObjectStore) -> None:
    inside = [f"s3://bucket/a.parquet#row={number}" for number in (1, 10)]
    commit(store, 1, inside)

    deleted(store, "s3://bucket/a.parquet#row=1")

    assert uris(store) == inside[1:]


def test_glob_removes_what_it_matches(store: ObjectStore) -> None:
    commit(store, 1, images(1, 2), images(3))
    commit(store, 2, ["s3://bucket/deep/00001.png"])

    assert deleted(store, "s3://bucket/0000[13].png").predictions == 1

    assert uris(store) == [image(2), "s3://bucket/deep/00001.png"]
    assert uris(store, QUARANTINE) == []


def test_dry_run_counts_and_changes_nothing(store: ObjectStore) -> None:
    commit(store, 1, images(1), images(2))
    before = [(stat.key, stat.etag) for stat in store.list("")]

    result = deleted(store, "s3://bucket/*.png", dry_run=True)

    assert (result.predictions, result.quarantine, result.examples) == (1, 1, images(1, 2))
    assert [(stat.key, stat.etag) for stat in store.list("")] == before


def test_unfinished_batch_with_the_image_is_refused(store: ObjectStore) -> None:
    commit(store, 1, images(1))
    plan = plan_batch(store, 2, images(1, 2))

    with pytest.raises(RequestError) as error:
        deleted(store, image(1))

    assert plan.batch in str(error.value)
    assert uris(store) == images(1)


def test_unfinished_batch_without_the_image_is_left_alone(store: ObjectStore) -> None:
    commit(store, 1, images(1))
    plan_batch(store, 2, images(2))

    deleted(store, image(1))

    assert uris(store) == []


@pytest.mark.slow
def test_killed_deletion_is_finished_by_repeating_it(store: ObjectStore) -> None:
    committed = [commit(store, number, images(number, 100), images(200 + number, 300)) for number in range(1, 13)]
    for books in committed:
        write_report(store, books, image(100))

    for seed in range(4):
        killed_at_random(seed, 0.5, delete_from_root, store.root, "s3://bucket/00[13]00.png")
        assert set(images(*range(1, 13))) <= set(uris(store))
    deleted(store, "s3://bucket/00[13]00.png")

    assert (uris(store), uris(store, QUARANTINE)) == (images(*range(1, 13)), images(*range(201, 213)))
    plans = [plan_key(TABLE, books.batch) for books in committed]
    assert files_with(store, image(100)) == files_with(store, image(300)) == plans


def test_new_checkpoint_names_no_deleted_image(store: ObjectStore, tmp_path: Path) -> None:
    commit(store, 1, images(1, 2))

    deleted(store, image(1))

    folder = tmp_path / "store" / table_folder(TABLE)
    [checkpoint] = (folder / "_delta_log").glob("*.checkpoint.parquet")
    assert image(1) not in str(pq.read_table(checkpoint).to_pylist())


def test_deleted_image_stays_planned(store: ObjectStore) -> None:
    books = commit(store, 1, images(1))

    deleted(store, image(1))

    assert files_with(store, image(1)) == [plan_key(TABLE, books.batch)]
    assert store.stat(f"{work_folder(TABLE)}/batches/00000001.json") is not None
    assert [row["image"] for row in rows(store)] == []


@pytest.mark.parametrize(
    ("location", "uri", "matches"),
    [
        ("/a/x #1.jpg", "file:///a/x %231.jpg", True),
        ("file:///a/x%20%231.jpg", "file:///a/x %231.jpg", True),
        ("/a/*.jpg", "file:///a/x %231.jpg", True),
        ("/a/*.jpg", "file:///a/b/x.jpg", False),
        ("/a/**/*.jpg", "file:///a/b/x.jpg", True),
        ("s3://b/%41.png", "s3://b/A.png", True),
        ("s3://b/x.tar#member=a", "s3://b/x.tar#member=a", True),
        ("s3://b/x.tar#member=a", "s3://b/x.tar#member=ab", False),
        ("s3://b/*.tar", "s3://b/x.tar#member=a.png", True),
    ],
)
def test_location_matches_the_canonical_uri(location: str, uri: str, matches: bool) -> None:
    match = image_match(location)

    assert match.matches(pa.array([uri])).to_pylist() == [matches]
    assert match.may_match(uri, uri) or not matches


def test_unreadable_glob_is_refused() -> None:
    with pytest.raises(RequestError) as error:
        image_match("s3://b/a**b")

    assert "a**b" in str(error.value)
