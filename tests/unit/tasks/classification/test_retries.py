"""Quarantine is not for ever: what is tried again, when, and what counts after that."""

import os
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir, mkdtemp

import numpy as np
import pytest

from infra.storage.input_files import InputUnreadable
from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import BatchBooks, read_books
from infra.storage.tables.newest import newest_rows
from infra.storage.tables.planning import index
from tasks.classification.actor import ShardClassifier, ShardTask
from tasks.classification.classify import ClassifiedBatch
from tasks.classification.commit import TooManyErrors, check_error_share, check_quarantine, commit_classified
from tasks.classification.plan import PlannedWork, plan_inputs
from tasks.summaries import ClassificationSummary
from tests.unit.tasks.classification.image_inputs import (
    OPTIONS,
    as_nobody,
    encode_idx,
    picture,
    png,
    save_files,
    save_tar,
)
from tests.unit.tasks.classification.test_actor import model, store

__all__ = ["model", "store"]  # fixtures


class Table:
    """A prediction table, and runs that classify into it without Ray."""

    def __init__(self, folder: Path, root: ObjectStore, version: ModelVersion) -> None:
        self.store, self.model, self._folder = root, version, folder

    def plan(self, *inputs: Path, retry_quarantined: bool = False) -> PlannedWork:
        return plan_inputs(
            self.store,
            [str(location) for location in inputs],
            table="t",
            model=self.model,
            options=OPTIONS,
            scratch=Path(mkdtemp(prefix="scratch-", dir=self._folder)),
            retry_quarantined=retry_quarantined,
        )

    def classify(self, work: PlannedWork) -> list[BatchBooks]:
        """Classify and commit all planned batches."""
        return [
            commit_classified(
                self.store,
                self.model,
                ClassifiedBatch(
                    plan,
                    {
                        shard: ShardClassifier(self.store.root, plan, self.model).work(ShardTask(shard))
                        for shard in range(plan.shards)
                    },
                    seconds=1.0,
                ),
            )
            for plan in work.plans
        ]

    def run(self, *inputs: Path, retry_quarantined: bool = False) -> list[tuple[int, int]]:
        """Classify inputs. Return how many images each batch predicted and quarantined."""
        committed = self.classify(self.plan(*inputs, retry_quarantined=retry_quarantined))
        return [(books.predicted, books.quarantined) for books in committed]

    def newest(self) -> tuple[dict[str, int | None], dict[str, str]]:
        """Return the label of each predicted image and the reason of each quarantined one, by file name."""
        with newest_rows(self.store, "t", read_books(self.store, "t")) as connection:
            rows = connection.execute("SELECT image, label FROM newest").fetchall()
            errors = connection.execute("SELECT image, reason FROM newest_quarantine").fetchall()
        return (
            {image.rpartition("/")[2]: label for image, label in rows},
            {image.rpartition("/")[2]: reason for image, reason in errors},
        )


@pytest.fixture
def table(tmp_path: Path, store: ObjectStore, model: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setenv("FMNIST_STORE", store.root)
    monkeypatch.setenv("FMNIST_STATE_DIR", f"{tmp_path}/state")
    return Table(tmp_path, store, model)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, of which one is damaged."""
    folder = tmp_path / "images"
    save_files(folder, {"a.png": png(0), "b.png": png(1), "damaged.png": b"not an image"})
    return folder


@pytest.fixture
def listed(images: Path) -> Path:
    """A list that names an image, and a file that doesn't exist."""
    path = images.parent / "list.txt"
    path.write_text("images/a.png\nimages/late.png\n")
    return path


def test_unusable_entries_of_a_list_make_one_batch(table: Table, images: Path):
    path = images.parent / "list.csv"
    path.write_text("path,label\nimages/a.png,3\nimages,1\ngs://bucket/b.png,1\n,1\n")
    assert table.run(path) == [(1, 3)]
    with path.open("a") as opened:
        opened.write("~/c.png,1\n")
    assert table.run(path) == [(0, 1)]
    assert table.run(path) == []
    done = table.plan(path).done
    assert (done.images, done.quarantined) == (5, 4)
    assert set(table.newest()[1]) == {"images", "b.png", "line=5", "c.png"}


def test_image_that_a_list_names_is_predicted_when_it_appears(table: Table, images: Path, listed: Path):
    assert table.run(listed) == [(1, 1)]
    save_files(images, {"late.png": png(7)})
    assert table.run(listed) == [(1, 0)]
    predicted, quarantined = table.newest()
    assert (set(predicted), quarantined) == ({"a.png", "late.png"}, {})


def test_entry_that_is_gone_for_good_makes_one_batch(table: Table, listed: Path):
    table.run(listed)
    assert [table.run(listed) for _ in range(3)] == [[], [], []]


def test_predicted_image_that_is_removed_stays_predicted(table: Table, images: Path, listed: Path):
    save_files(images, {"late.png": png(7)})
    assert table.run(listed) == [(2, 0)]
    (images / "late.png").unlink()
    assert table.run(listed) == []
    assert set(table.newest()[0]) == {"a.png", "late.png"}


def test_file_that_vanished_and_came_back_is_predicted(table: Table, images: Path):
    work = table.plan(images)
    (images / "b.png").rename(images.parent / "away.png")
    [books] = table.classify(work)
    assert (books.predicted, books.quarantined) == (1, 2)
    (images.parent / "away.png").rename(images / "b.png")  # keeps its modification time
    assert table.run(images) == [(1, 0)]
    assert set(table.newest()[0]) == {"a.png", "b.png"}


def test_file_is_tried_again_when_it_may_be_read(table: Table, images: Path, tmp_path: Path):
    give_to_nobody(tmp_path)
    (images / "b.png").chmod(0)
    with as_nobody():
        assert table.run(images) == [(1, 2)]
        assert "permission" in table.newest()[1]["b.png"]
        assert table.run(images) == []
    (images / "b.png").chmod(0o644)
    assert table.run(images) == [(1, 0)]
    assert "b.png" in table.newest()[0]


def give_to_nobody(folder: Path) -> None:
    """Let the user of `as_nobody` write a test's folder."""
    if os.geteuid() != 0:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    for parent in folder.parents:
        if parent.is_relative_to(gettempdir()) and parent != Path(gettempdir()):
            parent.chmod(0o755)


def test_damaged_image_is_not_tried_again_by_itself(table: Table, images: Path):
    assert table.run(images) == [(2, 1)]
    assert table.run(images) == []


def test_damaged_image_is_predicted_after_it_was_replaced(table: Table, images: Path):
    table.run(images)
    save_files(images, {"damaged.png": png(5)})
    assert table.run(images) == [(1, 0)]
    assert table.newest()[1] == {}


def test_retry_quarantined_tries_the_rest(table: Table, images: Path):
    table.run(images)
    work = table.plan(images, retry_quarantined=True)
    assert [(plan.planned, plan.is_retry) for plan in work.plans] == [(1, True)]
    [books] = table.classify(work)
    assert (books.predicted, books.quarantined) == (0, 1)
    assert set(table.newest()[1]) == {"damaged.png"}


def test_retried_container_counts_once(table: Table, images: Path):
    save_tar(images / "c.tar", [("1.png", png(3)), ("2.png", b"damaged"), ("3.png", png(4))])
    table.run(images)
    assert table.run(images, retry_quarantined=True) == [(2, 2)]
    predicted, quarantined = table.newest()
    assert set(predicted) == {"a.png", "b.png", "c.tar#member=1.png", "c.tar#member=3.png"}
    assert set(quarantined) == {"damaged.png", "c.tar#member=2.png"}
    assert table.plan(images).done.images == 6
    assert table.plan(images).done.quarantined == 2


def test_unreadable_container_is_tried_again_when_it_changes(table: Table, images: Path):
    save_files(images, {"c.tar": b"an upload that was cut"})
    assert table.run(images) == [(2, 2)]
    assert table.run(images) == []
    save_tar(images / "c.tar", [("1.png", png(3))])
    work = table.plan(images)
    assert [(plan.planned, plan.is_retry) for plan in work.plans] == [(1, True)]
    table.classify(work)
    assert set(table.newest()[1]) == {"damaged.png"}


def test_restored_file_is_predicted(table: Table, images: Path):
    """Its version is known, but the newest one is in quarantine."""
    assert table.run(images / "a.png") == [(1, 0)]
    kept = (images / "a.png").rename(images.parent / "backup.png")
    save_files(images, {"a.png": b"overwritten by something else"})
    assert table.run(images / "a.png") == [(0, 1)]
    kept.replace(images / "a.png")  # keeps its modification time
    assert table.run(images / "a.png") == [(1, 0)]
    assert [set(rows) for rows in table.newest()] == [{"a.png"}, set()]
    assert table.run(images / "a.png") == []


def test_image_that_a_list_names_stays_predicted_after_it_vanishes_again(table: Table, images: Path, listed: Path):
    table.run(listed)
    save_files(images, {"late.png": png(7)})
    table.run(listed)
    (images / "late.png").unlink()
    work = table.plan(listed)
    assert (work.plans, work.done.images, work.done.quarantined) == ([], 2, 0)


def test_images_that_are_tried_again_are_not_done(table: Table, images: Path):
    table.run(images)
    done = table.plan(images, retry_quarantined=True).done
    assert (done.images, done.quarantined) == (2, 0)


def test_images_whose_retry_is_unfinished_are_not_done(table: Table, images: Path):
    table.run(images)
    table.plan(images, retry_quarantined=True)
    work = table.plan(images)
    assert [plan.is_retry for plan in work.plans] == [True]
    assert (work.done.images, work.done.quarantined) == (2, 0)


def test_file_that_fails_although_a_look_finds_it_readable_is_tried_again_once(
    table: Table, images: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> bytes:
        raise InputUnreadable("unreadable: Input/output error")

    monkeypatch.setattr("tasks.classification.read.read_input", fail)
    (images / "b.png").unlink()
    (images / "damaged.png").unlink()
    assert [table.run(images) for _ in range(4)] == [[(0, 1)], [(0, 1)], [], []]
    monkeypatch.undo()
    monkeypatch.setenv("FMNIST_STORE", table.store.root)
    assert table.run(images, retry_quarantined=True) == [(1, 0)]


def test_file_that_vanishes_again_and_again_is_tried_each_time(table: Table, images: Path):
    path, away = images / "b.png", images.parent / "away.png"
    for _ in range(4):
        work = table.plan(path)
        path.rename(away)
        [books] = table.classify(work)
        assert books.quarantined == 1
        away.rename(path)
    assert table.run(path) == [(1, 0)]


def test_entry_that_can_not_be_used_makes_one_batch(table: Table, images: Path, monkeypatch: pytest.MonkeyPatch):
    listed = images.parent / "other.txt"
    listed.write_text("images/a.png\ngs://bucket/b.png\n")
    assert table.run(listed) == [(1, 1)]
    assert [table.run(listed, retry_quarantined=again) for again in (False, True)] == [[], []]


def test_retries_of_many_batches_come_from_the_index(table: Table, images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index, "BATCHES", 2)
    monkeypatch.setattr(index, "FANOUT", 2)
    table.run(images)
    for number in range(4):
        save_files(images, {f"{number}.png": png(number)})
        table.run(images)
    assert table.run(images, retry_quarantined=True) == [(0, 1)]
    assert (table.plan(images).done.images, table.plan(images).done.quarantined) == (7, 1)


def test_quarantine_of_another_model_is_not_tried_again(table: Table, images: Path):
    table.run(images)
    table.model = table.model.model_copy(update={"version": 2})
    assert [(plan.planned, plan.is_retry) for plan in table.plan(images, retry_quarantined=True).plans] == [(3, False)]


def test_labels_that_come_later_are_used(table: Table, tmp_path: Path):
    folder = tmp_path / "idx"
    pixels = np.stack([picture(number) for number in range(3)])
    save_files(folder, {"t10k-images-idx3-ubyte": encode_idx(pixels)})
    assert table.run(folder) == [(3, 0)]
    save_files(folder, {"t10k-labels-idx1-ubyte": encode_idx(np.array([4, 5, 6], np.uint8))})
    assert table.run(folder) == [(3, 0)]
    assert table.run(folder) == []
    assert sorted(table.newest()[0].values()) == [4, 5, 6]


# The verdict


def test_nothing_new_counts_predicted_and_quarantined_apart(table: Table, images: Path):
    table.run(images)
    work = table.plan(images)
    assert (work.done.images, work.done.quarantined) == (3, 1)
    words = ClassificationSummary("t", work, []).in_words()
    assert "2 predicted" in words
    assert "1 in quarantine" in words


def test_repeating_a_failed_run_fails_again(table: Table, images: Path):
    books = table.classify(table.plan(images))
    with pytest.raises(TooManyErrors):
        check_error_share.fn(books, 0.01)
    with pytest.raises(TooManyErrors) as error:
        check_quarantine.fn(table.plan(images), "t", 0.01)
    assert all(words in str(error.value) for words in ("3 images", "2 predicted", "1 in quarantine"))
    check_quarantine.fn(table.plan(images), "t", 0.5)


def test_entry_that_is_gone_for_good_does_not_fail_later_runs(table: Table, listed: Path):
    books = table.classify(table.plan(listed))
    with pytest.raises(TooManyErrors):
        check_error_share.fn(books, 0.01)
    check_quarantine.fn(table.plan(listed), "t", 0.01)


def retried_since(moment: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the current run a retry by Prefect of a run that started at a moment."""
    monkeypatch.setattr("tasks.classification.commit.retried_since", lambda: moment)


def test_failed_run_that_prefect_retries_fails_again(table: Table, listed: Path, monkeypatch: pytest.MonkeyPatch):
    started = datetime.now(UTC)
    table.classify(table.plan(listed))
    retried_since(started, monkeypatch)
    with pytest.raises(TooManyErrors):
        check_quarantine.fn(table.plan(listed), "t", 0.01)


def test_retry_by_prefect_fails_for_any_batch_of_the_run(
    table: Table, images: Path, listed: Path, monkeypatch: pytest.MonkeyPatch
):
    started = datetime.now(UTC)
    table.run(listed)
    assert table.run(images / "b.png") == [(1, 0)]
    retried_since(started, monkeypatch)
    with pytest.raises(TooManyErrors):
        check_quarantine.fn(table.plan(listed), "t", 0.01)


def test_retry_by_prefect_does_not_fail_for_batches_of_earlier_runs(
    table: Table, listed: Path, monkeypatch: pytest.MonkeyPatch
):
    table.run(listed)
    retried_since(datetime.now(UTC), monkeypatch)
    check_quarantine.fn(table.plan(listed), "t", 0.01)


def test_image_that_vanishes_once_more_does_not_count(table: Table, images: Path, listed: Path):
    table.run(listed)
    save_files(images, {"late.png": png(7)})
    work = table.plan(listed)
    (images / "late.png").unlink()
    [books] = table.classify(work)
    assert (books.predicted, books.quarantined, books.is_retry) == (0, 1, True)
    check_error_share.fn([books], 0)
