"""Write the metrics of a training run as Parquet, and as event files for TensorBoard."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import load_settings
from infra.storage.checkpoints import Checkpoint, CheckpointCorrupt, CheckpointNotFound, read_record
from infra.storage.keys import metrics_key, steps_key, tensorboard_folder
from infra.storage.object_store import ObjectStore, open_store
from tasks.step import step
from tasks.training.run import TrainedRun


@step("write metrics")
def write_metrics(run: TrainedRun, *, tensorboard: bool) -> None:
    """Collect the metrics in the run's checkpoints, before most checkpoints are removed.

    runs/<run id>/metrics.parquet    one row per epoch
    runs/<run id>/steps.parquet      one row per step
    runs/<run id>/tensorboard/       event files, if `tensorboard` is true
    """
    store = open_store(load_settings().store)
    # Keep the rows that are there already: some of their checkpoints may be gone.
    epochs = _existing_rows(store, metrics_key(run.run_id), "epoch")
    steps = _existing_rows(store, steps_key(run.run_id), "step")
    for record in _records(store, run):
        epochs[record.epoch] = {"epoch": record.epoch} | record.metrics
        steps |= {row["step"]: row for row in _step_rows(record)}
    for key, rows in ((metrics_key(run.run_id), epochs), (steps_key(run.run_id), steps)):
        with store.publish(key) as stream:
            pq.write_table(pa.Table.from_pylist([rows[number] for number in sorted(rows)]), stream)
    if tensorboard:
        _write_events(store, tensorboard_folder(run.run_id), epochs, steps)


def _existing_rows(store: ObjectStore, key: str, number: str) -> dict[int, dict[str, Any]]:
    """Read the rows of a file by the value of a column. Return no rows if the file doesn't exist."""
    if store.stat(key) is None:
        return {}
    filesystem, path = store.arrow(key)
    return {row[number]: row for row in pq.read_table(path, filesystem=filesystem).to_pylist()}


def _records(store: ObjectStore, run: TrainedRun) -> Iterator[Checkpoint]:
    for epoch in range(1, run.epoch + 1):
        with suppress(CheckpointNotFound, CheckpointCorrupt):
            yield read_record(store, run.run_id, epoch)


def _step_rows(record: Checkpoint) -> Iterator[dict[str, Any]]:
    """Make a row for each step of an epoch. Steps are numbered through the whole run, and all epochs have as many."""
    for number, values in enumerate(zip(*record.steps.values(), strict=True)):
        step = 1 + (record.epoch - 1) * len(record.steps["loss"]) + number
        yield {"epoch": record.epoch, "step": step} | dict(zip(record.steps, values, strict=True))


def _write_events(
    store: ObjectStore, folder: str, epochs: dict[int, dict[str, Any]], steps: dict[int, dict[str, Any]]
) -> None:
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as scratch:
        with SummaryWriter(scratch) as events:
            for kind, rows in (("epoch", epochs), ("step", steps)):
                for number in sorted(rows):
                    for name, value in rows[number].items():
                        if name not in ("epoch", "step"):
                            events.add_scalar(f"{kind}/{name}", value, number)
        # TensorBoard reads every file in a folder, so a file from an earlier attempt would draw the curves twice.
        for stat in list(store.list(f"{folder}/")):
            store.delete(stat.key)
        for file in Path(scratch).iterdir():
            with store.publish(f"{folder}/{file.name}") as stream:
                stream.write(file.read_bytes())
