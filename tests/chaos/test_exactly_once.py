"""Check that each image ends in exactly one row, whatever is planned, killed, held, resumed, added, changed or removed.

A state machine drives the real planning, actors and commits over a table in a folder. A kill is an exception before or
after a chosen write. An actor that is held runs in a thread that waits at a chosen step. The other files in this folder
kill and suspend processes.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import infra.storage.tables.commit
import tasks.classification.plan
from fmnist_model.images.decode import encode_png
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import open_store
from infra.storage.object_store.local import LocalObjectStore
from infra.storage.tables.books import read_books
from infra.storage.tables.commit import PartsDamaged, is_committed
from infra.storage.tables.delta import DeltaSnapshot, open_delta
from infra.storage.tables.newest import newest_rows
from infra.storage.tables.planning.batches import list_batches, take_number
from infra.storage.tables.records import read_records
from tasks.classification.classify import unfinished_shards
from tasks.classification.plan import PlannedWork
from tests.chaos.held_actor import STEPS, HeldActor, steps_can_be_held
from tests.chaos.one_process import classify_here, commit_here, plan_here, register_model
from tests.harness.tables import all_records, check_committed_batches, check_plans, file_of, planned_files

TABLE = "table"
NAMES = st.sampled_from(["a.png", "b.png", "x/c.png", "x/d e.png", "x/ü.parquet", "z.parquet"])


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(write: int, *, done: bool) -> Iterator[None]:
    """Raise `Killed` before or after the n-th write of the store or of delta-rs. Fewer writes raise nothing."""
    left = [write]

    def reached() -> bool:
        left[0] -= 1
        return left[0] == 0

    def whole(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            last = reached()
            if last and not done:
                raise Killed
            result = real(*arguments, **more)
            if last:
                raise Killed
            return result

        return call

    def stream(real: Callable[..., AbstractContextManager[Any]]) -> Callable[..., AbstractContextManager[Any]]:
        @contextmanager
        def call(*arguments: Any) -> Iterator[Any]:
            last = reached()
            with real(*arguments) as opened:
                yield opened
                if last and not done:
                    raise Killed
            if last:
                raise Killed

        return call

    patches = [
        (LocalObjectStore, "create", whole),
        (LocalObjectStore, "swap", whole),
        (LocalObjectStore, "publish", stream),
        (DeltaTable, "create", whole),
        (DeltaSnapshot, "_commit", whole),
        (infra.storage.tables.commit, "write_books", whole),
    ]
    with ExitStack() as stack:
        for owner, name, killing in patches:
            stack.enter_context(mock.patch.object(owner, name, killing(getattr(owner, name))))
        yield


class Table(RuleBasedStateMachine):
    """Everything that can happen to a table."""

    held: HeldActor | None = None

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="exactly-once-"))
        self.inputs = self.folder / "inputs"
        self.store = open_store((self.folder / "store").as_uri())
        self.registry = ModelRegistry(self.store)
        self.written = 0
        self.checked: dict[str, str] = {}
        self.steps = ExitStack()
        self.steps.enter_context(steps_can_be_held())
        self.write("a.png", broken=False)
        self.new_model()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            try:
                self.resume_actor()
                self.run_undisturbed()
                self.table_is_right()
                self.check_newest_view()
            finally:
                self.steps.close()
                shutil.rmtree(self.folder)

    @rule()
    def new_model(self) -> None:
        """Register a new champion. All images have to be classified again."""
        self.model = register_model(self.store, seed=len(self.registry.versions()))

    @rule(name=NAMES, broken=st.booleans())
    def write(self, name: str, broken: bool) -> None:
        """Write a new file, or overwrite an existing one."""
        path = self.inputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written += 1
        pixels = np.full((28, 28), self.written % 256, np.uint8)
        data = b"not an image" if broken else encode_png(pixels)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"image": [data, None, encode_png(pixels)][: 1 + self.written % 3]}), path)
        else:
            path.write_bytes(data)
        os.utime(path, ns=(self.written * 10**9, self.written * 10**9))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        """Remove a file. The last one stays, because a folder without images is refused."""
        found = [path for path in self.inputs.rglob("*.p*") if path.is_file()]
        if len(found) > 1:
            (self.inputs / name).unlink(missing_ok=True)

    @rule()
    def plan_only(self) -> None:
        """Plan a batch, and leave it there."""
        self.plan()

    def plan(self) -> PlannedWork:
        return plan_here(self.store, self.inputs, TABLE, self.model)

    @rule(name=NAMES)
    def plan_while_another_run_plans(self, name: str) -> None:
        """Have another run plan one more file after this run has read the plans, and before it takes its number."""
        left = [1]

        def meanwhile(*arguments: Any) -> None:
            if left[0]:
                left[0] -= 1
                self.write(name, broken=False)
                self.plan()
            take_number(*arguments)

        with mock.patch.object(tasks.classification.plan, "take_number", meanwhile):
            self.plan()

    @rule()
    def run_undisturbed(self) -> None:
        """Run without a kill. Nothing may be left to do afterwards."""
        self.run_to_the_end()
        assert self.plan().plans == []

    @rule(write=st.integers(1, 16), done=st.booleans())
    def killed_run(self, write: int, done: bool) -> None:
        """Run, and be killed at a write."""
        try:
            with killed_at(write, done=done):
                self.run_to_the_end()
        except Killed:
            pass

    @rule()
    def two_runs_at_once(self) -> None:
        """Have two runs classify every shard of the same batches, and both commit."""
        first, second = self.plan(), self.plan()
        for work in (first, second):
            self.classify_and_commit(work)

    @rule(name=NAMES)
    def two_runs_commit_after_an_input_was_removed(self, name: str) -> None:
        """Have two runs classify the same batches before either commits, and remove a file between them."""
        first, second = self.plan(), self.plan()
        classified = [classify_here(self.store, plan, first.model) for plan in first.plans]
        self.remove(name)
        again = [classify_here(self.store, plan, second.model) for plan in second.plans]
        for batch in [*again, *classified]:
            commit_here(self.store, batch, first.model)

    @precondition(lambda self: self.held is None)
    @rule(step=st.sampled_from(STEPS))
    def hold_actor(self, step: str) -> None:
        """Have another run's actor start on a shard of an unfinished batch, and wait at a step."""
        work = self.plan()
        for plan in work.plans:
            for task in unfinished_shards(self.store, plan, read_records(self.store, plan)):
                self.held = HeldActor(self.store, plan, work.model, task, step=step)
                return

    @rule()
    def resume_actor(self) -> None:
        """Let the held actor finish. Its run then commits the batch with what it knows of that shard."""
        if self.held is not None:
            held, self.held = self.held, None
            record = held.finish()
            batch = classify_here(self.store, held.plan, held.model)
            batch.records[record.shard] = record
            with suppress(PartsDamaged):
                commit_here(self.store, batch, held.model)

    @rule(which=st.integers(0, 1000), lost=st.booleans())
    def damage_part(self, which: int, lost: bool) -> None:
        """Lose or damage a part of an unfinished batch."""
        unfinished = [entry.batch for entry in list_batches(self.store, TABLE) if not self.is_committed(entry.batch)]
        records = [record for batch in unfinished for record in all_records(self.store, TABLE, batch)]
        keys = [f"{table_folder(TABLE)}/{part.name}" for record in records for part in record.parts]
        keys += [f"{quarantine_folder(TABLE)}/{part.name}" for record in records for part in record.quarantine]
        if keys:
            path = self.folder / "store" / keys[which % len(keys)]
            data = path.read_bytes() if path.exists() else b""
            path.unlink(missing_ok=True)
            if not lost:
                path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))

    def is_committed(self, batch: str) -> bool:
        return is_committed(self.store, TABLE, batch)

    def run_to_the_end(self) -> None:
        self.classify_and_commit(self.plan())

    def classify_and_commit(self, work: PlannedWork) -> None:
        for plan in work.plans:
            commit_here(self.store, classify_here(self.store, plan, work.model), work.model)

    @invariant()
    def table_is_right(self) -> None:
        """Check plans, rows, books and parts, if the store has changed since the last check."""
        if not hasattr(self, "store"):
            return
        objects = {stat.key: stat.etag for stat in self.store.list("")}
        if objects != self.checked:
            check_plans(self.store, TABLE)
            check_committed_batches(self.store, TABLE)
            for version in self.registry.versions():
                self.check_newest_rows(str(version))
            self.checked = objects

    def check_newest_rows(self, model_version: str) -> list[str]:
        """Check that `file_version` selects one row per image: that of the last committed plan of its file.

        Returns:
            The images of these rows, from predictions and quarantine.
        """
        books = [entry for entry in read_books(self.store, TABLE) if entry.model_version == model_version]
        planned: dict[str, int] = {}
        for entry in books:
            planned |= planned_files(self.store, TABLE, entry.batch)
        rows = self.rows_of([entry.batch for entry in books])
        newest: dict[str, int] = {}
        for image, number in rows:
            newest[file_of(image)] = max(number, newest.get(file_of(image), 0))
        images = [image for image, number in rows if number == newest[file_of(image)]]
        assert len(set(images)) == len(images)
        assert Counter(map(file_of, images)) == Counter(planned)
        if all(entry.superseded == 0 for entry in books):
            assert len(images) == len(rows)
        return images

    def check_newest_view(self) -> None:
        """Check that the views of the newest rows, which users query, have the same images."""
        books = read_books(self.store, TABLE)
        for version in {entry.model_version for entry in books}:
            with newest_rows(self.store, TABLE, books, version) as duck:
                found = duck.execute(
                    "SELECT image FROM newest UNION ALL SELECT image FROM newest_quarantine"
                ).fetchall()
            assert sorted(image for (image,) in found) == sorted(self.check_newest_rows(version))

    def rows_of(self, batches: list[str]) -> list[tuple[str, int]]:
        """Return image and file version of all rows and quarantined images of some batches."""
        found: list[tuple[str, int]] = []
        for folder in (table_folder(TABLE), quarantine_folder(TABLE)):
            snapshot = open_delta(self.store, folder)
            if snapshot is not None:
                rows = snapshot.dataset(batches).to_table(columns=["image", "file_version"]).to_pydict()
                found += zip(rows["image"], rows["file_version"], strict=True)
        return found


TestExactlyOnce = Table.TestCase
TestExactlyOnce.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes longer than the test's timeout
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
