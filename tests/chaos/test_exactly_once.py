"""Check that each image ends in exactly one row, whatever is planned, killed, resumed, added, changed or removed.

A state machine drives the real planning, actors and commits over a table in a folder. A kill is an exception before or
after a chosen write. The other files in this folder kill processes.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import tasks.classification.plan
from fmnist_model.images.decode import encode_png
from fmnist_model.network import NeuralNetwork, save_weights
from infra.storage.batch_log import append_batch, committed_batches, mark_committed, read_batch_log
from infra.storage.batch_plan import plan_files
from infra.storage.checkpoints import write_checkpoint
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import open_store
from infra.storage.object_store.local import LocalObjectStore
from infra.storage.prediction_table import commit, existing_parts, read_books
from tasks.classification.actor import ShardClassifier
from tasks.classification.options import ReadOptions
from tasks.classification.plan import PlannedWork, plan_inputs

TABLE = "table"
NAMES = st.sampled_from(["a.png", "b.png", "x/c.png", "x/d e.png", "x/ü.parquet", "z.parquet"])


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(write: int, *, done: bool) -> Iterator[None]:
    """Raise `Killed` before or after the store's n-th write. Fewer writes raise nothing."""
    left = [write]

    def reached() -> bool:
        left[0] -= 1
        return left[0] == 0

    def whole(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **more: Any) -> None:
            last = reached()
            if last and not done:
                raise Killed
            real(*arguments, **more)
            if last:
                raise Killed

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

    with (
        mock.patch.object(LocalObjectStore, "create", whole(LocalObjectStore.create)),
        mock.patch.object(LocalObjectStore, "swap", whole(LocalObjectStore.swap)),
        mock.patch.object(LocalObjectStore, "publish", stream(LocalObjectStore.publish)),
    ):
        yield


class Table(RuleBasedStateMachine):
    """Everything that can happen to a table."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="exactly-once-"))
        self.inputs = self.folder / "inputs"
        self.store = open_store((self.folder / "store").as_uri())
        self.registry = ModelRegistry(self.store)
        self.written = 0
        self.write("a.png", broken=False)
        self.new_model()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.run_undisturbed()
            shutil.rmtree(self.folder)

    @rule()
    def new_model(self) -> None:
        """Register a new champion. All images have to be classified again."""
        torch.manual_seed(len(self.registry.versions()))
        run_id = f"run-{len(self.registry.versions())}"
        files = {"model.safetensors": save_weights(NeuralNetwork())}
        checkpoint = write_checkpoint(
            self.store, run_id=run_id, epoch=1, files=files, metrics={}, parameters={}, data_version="tests"
        )
        self.model = self.registry.register(
            run_id=run_id,
            epoch=1,
            weights_sha256=checkpoint.files[0].sha256,
            metrics={},
            parameters={},
            data_version="tests",
        )

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
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            return plan_inputs(
                self.store,
                [str(self.inputs)],
                table=TABLE,
                model=self.model,
                options=ReadOptions(),
                scratch=Path(scratch),
            )

    @rule(name=NAMES)
    def plan_while_another_run_plans(self, name: str) -> None:
        """Have another run plan one more file after this run has read the log, and before it adds its entry."""
        left = [1]

        def meanwhile(*arguments: Any) -> None:
            if left[0]:
                left[0] -= 1
                self.write(name, broken=False)
                self.plan()
            append_batch(*arguments)

        with mock.patch.object(tasks.classification.plan, "append_batch", meanwhile):
            self.plan()

    @rule()
    def run_undisturbed(self) -> None:
        """Run without a kill. Nothing may be left to do afterwards."""
        self.run_to_the_end()
        assert self.plan().plans == []

    @rule(write=st.integers(1, 12), done=st.booleans())
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

    def run_to_the_end(self) -> None:
        self.classify_and_commit(self.plan())

    def classify_and_commit(self, work: PlannedWork) -> None:
        for plan in work.plans:
            actor = ShardClassifier(self.store.root, plan, work.model)
            found = [read_books(self.store, plan, shard) for shard in existing_parts(self.store, plan)]
            books = {entry.shard: entry for entry in found if entry}
            for shard in range(plan.shards):
                if shard not in books:
                    books[shard] = actor.work(shard)
            commit(self.store, plan, list(books.values()), model={}, seconds=1.0)
            mark_committed(self.store, TABLE, {plan.batch})

    @invariant()
    def each_image_is_in_one_plan(self) -> None:
        """Check that, per model, no image of a file's version is planned twice."""
        if not hasattr(self, "store"):
            return
        log = read_batch_log(self.store, TABLE)
        for version in {entry.model_version for entry in log.batches}:
            batches = [entry.batch for entry in log.of_model(version)]
            files = plan_files(self.store, TABLE, batches, self.folder)
            pieces = Counter(
                (piece["uri"], piece["fingerprint"], piece["first_row"])
                for path in files
                for piece in pq.read_table(path).to_pylist()
            )
            assert not pieces or max(pieces.values()) == 1

    @invariant()
    def every_image_of_a_committed_batch_is_in_one_row(self) -> None:
        """Check that each planned image is predicted or quarantined exactly once."""
        if not hasattr(self, "store"):
            return
        for manifest in committed_batches(self.store, TABLE):
            [path] = plan_files(self.store, TABLE, [manifest.batch], self.folder)
            planned = Counter[str]()
            for piece in pq.read_table(path).to_pylist():
                planned[piece["uri"]] += piece["rows"]
            keys = [*manifest.parts, *manifest.error_parts]
            folder = Path(self.store.root.removeprefix("file://"))
            rows = [uri for key in keys for uri in pq.read_table(folder / key, columns=["image"])["image"].to_pylist()]
            assert len(rows) == len(set(rows)) == manifest.planned == manifest.predicted + manifest.quarantined
            assert Counter(uri.partition("#row=")[0] for uri in rows) == planned


TestExactlyOnce = Table.TestCase
TestExactlyOnce.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
