"""Every input image is planned exactly once, no matter how many runs plan at the same time."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from fmnist_model.images import TRANSFORM_VERSION
from fmnist_model.predictions import prediction_schema
from infra.errors import JobStopped, RequestError
from infra.storage.input_files import InputNotFound
from infra.storage.keys import number_key, plan_key, table_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.delta import ensure_delta
from infra.storage.tables.planning import index
from infra.storage.tables.planning.batches import NumberedBatch, NumberTaken, list_batches, read_catalog
from infra.storage.tables.planning.plan import BatchPlan, ShardInputs, find_plan
from infra.storage.uris import canonical_uri
from tasks.classification import options
from tasks.classification import plan as planning
from tasks.classification.options import ReadOptions
from tasks.classification.plan import PlannedWork, plan_inputs
from tests.unit.tasks.classification.image_inputs import (
    OPTIONS,
    model_version,
    save_files,
    save_parquet,
    save_tar,
    touch,
)


class Table:
    """A prediction table in a new store, with methods to plan and commit batches."""

    def __init__(self, folder: Path) -> None:
        self.store: ObjectStore = open_store(f"file://{folder}/store")
        self._folder = folder

    def plan(self, *inputs: str | Path, version: int = 1, options: ReadOptions = OPTIONS) -> PlannedWork:
        return plan_inputs(
            self.store,
            [str(location) for location in inputs],
            table="t",
            model=model_version(version),
            options=options,
            scratch=Path(mkdtemp(prefix="scratch-", dir=self._folder)),
        )

    def commit(self, plan: BatchPlan) -> None:
        """Commit a batch without rows. The planner only looks for the batch's transaction."""
        table = ensure_delta(self.store, table_folder("t"), prediction_schema(), name="t", description="")
        assert table.add({plan.batch: []})

    def batches(self) -> list[NumberedBatch]:
        return list_batches(self.store, "t")

    def planned(self) -> list[str]:
        """URIs in the plans of all batches, sorted."""
        return sorted(uri for entry in self.batches() for uri in self.planned_in(entry.batch))

    def planned_in(self, batch: str) -> list[str]:
        plan = find_plan(self.store, "t", batch)
        assert plan is not None
        inputs = ShardInputs(self.store, plan)
        return [uri for shard in range(plan.shards) for uri in inputs.of(shard).column("uri").to_pylist()]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three images."""
    save_files(tmp_path / "images", {f"{name}.png": name.encode() for name in "abc"})
    return tmp_path / "images"


def test_first_run_plans_all_images(table: Table, images: Path):
    work = table.plan(images)
    assert [(plan.planned, plan.shards) for plan in work.plans] == [(3, 1)]
    assert table.planned() == [f"file://{images}/{name}.png" for name in "abc"]


def test_plan_is_ordered_by_uri(table: Table, tmp_path: Path):
    ordered = ["a b.png", "a#1.png", "a.tar", "a/c.png", "b.png", "größe.png", "图.png"]
    touch(tmp_path / "images", *(name for name in reversed(ordered) if name != "a.tar"))
    save_tar(tmp_path / "images/a.tar", [("1.png", b"")])
    [plan] = table.plan(tmp_path / "images").plans
    assert table.planned_in(plan.batch) == [canonical_uri(f"{tmp_path}/images/{name}") for name in ordered]


def test_overlapping_inputs_are_planned_once(table: Table, images: Path):
    (images / "list.txt").write_text("a.png\nb.png\nb.png\n")
    table.plan(images, f"{images}/a.png", f"{images}/*.png", images / "list.txt", f"{images}/../images")
    assert table.planned() == [f"file://{images}/{name}.png" for name in "abc"]


def test_label_from_a_list_is_kept_if_a_folder_contains_the_file_too(table: Table, images: Path):
    (images / "list.csv").write_text("uri,label\nb.png,4\n")
    [plan] = table.plan(images, images / "list.csv").plans
    assert ShardInputs(table.store, plan).of(0).column("label").to_pylist() == [None, 4, None]


def test_planned_images_include_images_in_containers(table: Table, tmp_path: Path):
    save_tar(tmp_path / "a.tar", [(f"{number}.png", b"") for number in range(5)])
    touch(tmp_path, "b.png")
    [plan] = table.plan(tmp_path / "a.tar", tmp_path / "b.png").plans
    assert plan.planned == 6


def test_second_run_plans_nothing_and_counts_finished_images(table: Table, images: Path):
    save_tar(images / "d.tar", [(f"{number}.png", b"") for number in range(5)])
    table.commit(table.plan(images).plans[0])
    work = table.plan(images)
    assert (work.plans, work.done.images) == ([], 8)


def test_finished_images_are_counted_only_among_the_inputs(table: Table, images: Path):
    table.commit(table.plan(images).plans[0])
    assert table.plan(images / "a.png").done.images == 1


def test_batch_contains_only_the_new_file(table: Table, images: Path):
    table.commit(table.plan(images).plans[0])
    touch(images, "new.png")
    work = table.plan(images)
    assert [table.planned_in(plan.batch) for plan in work.plans] == [[f"file://{images}/new.png"]]
    assert work.done.images == 3


def test_changed_file_is_planned_again(table: Table, images: Path):
    table.commit(table.plan(images).plans[0])
    (images / "b.png").write_bytes(b"changed")
    assert [table.planned_in(plan.batch) for plan in table.plan(images).plans] == [[f"file://{images}/b.png"]]


def test_missing_file_is_planned_again_when_it_appears(table: Table, images: Path):
    (images / "list.txt").write_text("later.png\n")
    table.commit(table.plan(images / "list.txt").plans[0])
    assert table.plan(images / "list.txt").plans == []
    touch(images, "later.png")
    [plan] = table.plan(images / "list.txt").plans
    assert table.planned_in(plan.batch) == [f"file://{images}/later.png"]


def test_another_model_version_plans_all_images(table: Table, images: Path):
    first = table.plan(images).plans
    table.commit(first[0])
    work = table.plan(images, version=2)
    assert [(plan.planned, plan.model_version) for plan in work.plans] == [(3, "2")]
    assert (work.done.images, work.plans[0].batch == first[0].batch) == (0, False)


def test_unfinished_batch_is_planned_first(table: Table, images: Path):
    [unfinished] = table.plan(images).plans
    touch(images, "new.png")
    first, second = table.plan(images).plans
    assert first == unfinished
    assert table.planned_in(second.batch) == [f"file://{images}/new.png"]


def test_unfinished_batch_is_planned_even_if_its_inputs_are_not_requested(table: Table, images: Path):
    [unfinished] = table.plan(images / "a.png").plans
    assert table.plan(images / "b.png").plans[0] == unfinished


def test_unfinished_batch_of_another_model_is_ignored(table: Table, images: Path):
    table.plan(images)
    assert [plan.model_version for plan in table.plan(images, version=2).plans] == ["2"]


def test_finished_batch_is_not_planned_again(table: Table, images: Path):
    for name in "abc":
        table.commit(table.plan(images / f"{name}.png").plans[0])
    assert table.plan(images).plans == []


def test_container_without_images_is_refused(table: Table, tmp_path: Path):
    with pytest.raises(InputNotFound) as error:
        table.plan(save_parquet(tmp_path / "a.parquet", []))
    assert "a.parquet" in str(error.value)
    assert table.batches() == []


@pytest.mark.parametrize(
    "options",
    [
        ReadOptions(invert="auto"),
        ReadOptions(image_column="picture"),
        ReadOptions(label_column="truth"),
        ReadOptions(calibrate=False),
    ],
)
def test_other_options_for_the_same_table_and_model_are_refused(table: Table, images: Path, options: ReadOptions):
    table.plan(images)
    [changed] = [name for name in ReadOptions.model_fields if getattr(options, name) != getattr(OPTIONS, name)]
    with pytest.raises(RequestError) as error:
        table.plan(images, options=options)
    assert all(words in str(error.value) for words in ("Table t", "version 1", changed))


def test_table_of_another_transform_goes_on_with_one_line(
    table: Table, images: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(options, "TRANSFORM_VERSION", 1)
    table.plan(images / "a.png")
    monkeypatch.undo()
    caplog.clear()
    with caplog.at_level("INFO"):
        [earlier, new] = table.plan(images).plans
    assert (earlier.options["transform"], new.options["transform"]) == (1, TRANSFORM_VERSION)
    [line] = [record.getMessage() for record in caplog.records if "transform" in record.getMessage()]
    assert f"transform {TRANSFORM_VERSION}" in line


def test_table_of_the_same_transform_says_nothing(table: Table, images: Path, caplog: pytest.LogCaptureFixture):
    table.plan(images / "a.png")
    with caplog.at_level("INFO"):
        table.plan(images)
    assert "transform" not in caplog.text


def test_other_options_for_another_model_are_accepted(table: Table, images: Path):
    table.plan(images)
    work = table.plan(images, version=2, options=ReadOptions(invert="auto"))
    assert work.plans[0].options["invert"] == "auto"


def test_lost_plan_of_an_unfinished_batch_is_named(table: Table, images: Path):
    [plan] = table.plan(images).plans
    table.store.delete(plan_key("t", plan.batch))
    with pytest.raises(JobStopped) as error:
        table.plan(images)
    assert plan_key("t", plan.batch) in str(error.value)


def test_lost_plan_of_a_committed_batch_is_named(table: Table, images: Path):
    [plan] = table.plan(images).plans
    table.commit(plan)
    table.store.delete(plan_key("t", plan.batch))
    with pytest.raises(JobStopped) as error:
        table.plan(images)
    assert plan_key("t", plan.batch) in str(error.value)


def test_table_without_its_work_folder_is_not_planned_again(table: Table, images: Path):
    table.commit(table.plan(images).plans[0])
    for stat in list(table.store.list("work/")):
        table.store.delete(stat.key)
    with pytest.raises(JobStopped) as error:
        table.plan(images)
    assert "work/t" in str(error.value)


def test_batches_are_numbered_in_the_order_of_their_plans(table: Table, images: Path):
    [first] = table.plan(images / "a.png").plans
    table.commit(first)
    (images / "a.png").write_bytes(b"changed")
    [second] = table.plan(images / "a.png").plans
    assert (first.number, second.number) == (1, 2)


def test_batch_counts_files_that_supersede_others(table: Table, images: Path):
    table.commit(table.plan(images / "[ab].png").plans[0])
    for name in "bc":
        (images / f"{name}.png").write_bytes(b"changed")
    assert table.plan(images).plans[0].superseded == 1


def test_files_of_another_model_are_not_superseded(table: Table, images: Path):
    table.plan(images, version=2)
    (images / "b.png").write_bytes(b"changed")
    assert table.plan(images, version=1).plans[0].superseded == 0


def test_images_of_an_unfinished_batch_are_not_done(table: Table, images: Path):
    table.plan(images)
    work = table.plan(images)
    assert (len(work.plans), work.done.images) == (1, 0)


def test_planning_needs_neither_ray_nor_prefect(tmp_path: Path, images: Path):
    program = f"""
import sys
sys.modules["ray"] = sys.modules["prefect"] = None  # makes the import fail
from pathlib import Path
from infra.storage.object_store import open_store
from tasks.classification.options import ReadOptions
from tasks.classification.plan import plan_inputs
from tests.unit.tasks.classification.image_inputs import model_version
work = plan_inputs(
    open_store("file://{tmp_path}/store"), ["{images}"], table="t", model=model_version(1), options=ReadOptions(),
    scratch=Path("{tmp_path}"),
)
print(work.plans[0].planned)
"""
    planned = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    assert planned.stdout.strip() == "3"


# Concurrent planners


def plan_in_between(monkeypatch: pytest.MonkeyPatch, other: Callable[[], Any]) -> list[Any]:
    """Run another planner from start to end just before the next planner takes a number."""
    take, results = planning.take_number, []

    def take_after_other(*arguments: Any) -> None:
        monkeypatch.setattr(planning, "take_number", take)
        results.append(other())
        take(*arguments)

    monkeypatch.setattr(planning, "take_number", take_after_other)
    return results


def test_concurrent_plans_of_the_same_inputs_are_one_batch(table: Table, images: Path, monkeypatch: pytest.MonkeyPatch):
    others = plan_in_between(monkeypatch, lambda: table.plan(images))
    late = table.plan(images)
    assert late.plans == others[0].plans
    assert [entry.batch for entry in table.batches()] == [late.plans[0].batch]


@pytest.mark.parametrize(
    ("one", "other"), [("ab", "bc"), ("abc", "b"), ("b", "abc"), ("a", "c")], ids=lambda names: names
)
def test_concurrent_planners_put_no_image_into_two_batches(
    table: Table, images: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str
):
    plan_in_between(monkeypatch, lambda: table.plan(*(f"{images}/{name}.png" for name in other)))
    table.plan(*(f"{images}/{name}.png" for name in one))
    assert table.planned() == [f"file://{images}/{name}.png" for name in sorted({*one, *other})]


def test_late_planner_also_finishes_the_other_batch(table: Table, images: Path, monkeypatch: pytest.MonkeyPatch):
    others = plan_in_between(monkeypatch, lambda: table.plan(f"{images}/[ab].png"))
    first, second = table.plan(f"{images}/[bc].png").plans
    assert [first] == others[0].plans
    assert table.planned_in(second.batch) == [f"file://{images}/c.png"]


def test_concurrent_planners_of_two_models_both_plan_all_images(
    table: Table, images: Path, monkeypatch: pytest.MonkeyPatch
):
    plan_in_between(monkeypatch, lambda: table.plan(images, version=2))
    table.plan(images, version=1)
    assert sorted(table.planned()) == sorted([f"file://{images}/{name}.png" for name in "abc"] * 2)


def test_late_planner_with_other_options_is_refused(table: Table, images: Path, monkeypatch: pytest.MonkeyPatch):
    plan_in_between(monkeypatch, lambda: table.plan(images / "a.png", options=ReadOptions(invert="auto")))
    with pytest.raises(RequestError, match="invert auto"):
        table.plan(images / "b.png")


def test_planner_gives_up_after_repeated_conflicts(table: Table, images: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any) -> None:
        raise NumberTaken("another process was first")

    monkeypatch.setattr(planning, "take_number", refuse)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    with pytest.raises(NumberTaken):
        table.plan(images)


def test_planner_killed_before_it_has_a_number_leaves_no_batch(
    table: Table, images: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(planning, "take_number", _die)
        with pytest.raises(KeyboardInterrupt):
            table.plan(images)
    assert table.batches() == []
    assert [plan.planned for plan in table.plan(images).plans] == [3]


def test_planner_killed_after_it_has_a_number_leaves_a_batch_to_resume(
    table: Table, images: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(planning, "compact_index", _die)
        with pytest.raises(KeyboardInterrupt):
            table.plan(images)
    [entry] = table.batches()
    assert [plan.batch for plan in table.plan(images).plans] == [entry.batch]


def _die(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_batch_that_the_listing_does_not_show_yet_is_found(table: Table, images: Path, monkeypatch: pytest.MonkeyPatch):
    for name in "abc":
        table.commit(table.plan(images / f"{name}.png").plans[0])
    listed, hidden = table.store.list, {number_key("t", 1), number_key("t", 3)}

    def lagging(prefix: str, *, after: str = "") -> Any:
        return (stat for stat in listed(prefix, after=after) if stat.key not in hidden)

    monkeypatch.setattr(table.store, "list", lagging)
    touch(images, "new.png")
    [plan] = table.plan(images).plans
    assert table.planned_in(plan.batch) == [f"file://{images}/new.png"]


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compact the index after every second batch."""
    monkeypatch.setattr(index, "BATCHES", 2)
    monkeypatch.setattr(index, "FANOUT", 2)


@pytest.mark.usefixtures("small_segments")
def test_files_in_segments_count_as_planned_and_done(table: Table, tmp_path: Path):
    names = [f"{number:02d}.png" for number in range(9)]
    for name in names:
        touch(tmp_path / "images", name)
        [plan] = table.plan(tmp_path / "images").plans
        assert table.planned_in(plan.batch) == [f"file://{tmp_path}/images/{name}"]
        table.commit(plan)
    assert [segment.range for segment in read_catalog(table.store, "t").segments] == [index.SegmentRange(1, 8)]
    work = table.plan(tmp_path / "images")
    assert (work.plans, work.done.images) == ([], 9)


@pytest.mark.usefixtures("small_segments")
def test_unfinished_batch_in_a_segment_is_planned_first(table: Table, tmp_path: Path):
    for number in range(4):
        touch(tmp_path / "images", f"{number}.png")
        *_, plan = table.plan(tmp_path / f"images/{number}.png").plans
        if number != 1:
            table.commit(plan)
    assert [segment.range for segment in read_catalog(table.store, "t").segments] == [index.SegmentRange(1, 4)]
    work = table.plan(tmp_path / "images")
    assert ([plan.number for plan in work.plans], work.done.images) == ([2], 3)


@pytest.mark.usefixtures("small_segments")
def test_other_options_than_those_of_a_segment_are_refused(table: Table, images: Path):
    for name in "abc":
        table.plan(images / f"{name}.png")
    touch(images, "d.png")
    with pytest.raises(RequestError, match="invert"):
        table.plan(images / "d.png", options=ReadOptions(invert="auto"))


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("seed", range(3))
def test_many_concurrent_planners_plan_every_image_exactly_once(table: Table, tmp_path: Path, seed: int):
    chance = np.random.default_rng(seed)
    touch(tmp_path / "images", *(f"{number:02d}.png" for number in range(20)))
    inputs = [chance.choice(20, 8, replace=False) for _ in range(6)]

    def plan(numbers: Any) -> PlannedWork:
        return table.plan(*(f"{tmp_path}/images/{number:02d}.png" for number in numbers))

    with ThreadPoolExecutor(len(inputs)) as threads:
        list(threads.map(plan, inputs))
    requested = sorted({number for numbers in inputs for number in numbers.tolist()})
    assert table.planned() == [f"file://{tmp_path}/images/{number:02d}.png" for number in requested]


# What is passed over


def test_plan_counts_what_was_passed_over_in_folders_and_containers(table: Table, images: Path):
    touch(images, "notes.docx", ".hidden.png")
    save_parquet(images / "empty.parquet", [])
    work = table.plan(images)
    assert work.passed_over.to_record() == {".docx": 1, "Parquet file without images": 1, "hidden file": 1}


def test_run_with_nothing_new_counts_what_was_passed_over(table: Table, images: Path):
    touch(images, "notes.docx")
    table.commit(table.plan(images).plans[0])
    work = table.plan(images)
    assert (work.plans, work.passed_over.to_record()) == ([], {".docx": 1})


def test_container_is_counted_once_if_another_run_takes_the_number(
    table: Table, images: Path, monkeypatch: pytest.MonkeyPatch
):
    save_parquet(images / "empty.parquet", [])
    taken = iter([True, False])
    take = planning.take_number

    def contended(store: ObjectStore, name: str, entry: NumberedBatch) -> None:
        if next(taken):
            raise NumberTaken
        take(store, name, entry)

    monkeypatch.setattr(planning, "take_number", contended)
    assert table.plan(images).passed_over.to_record() == {"Parquet file without images": 1}
