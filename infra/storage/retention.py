"""Retention: remove checkpoints that no one needs, and the leftovers of dead writers and of committed batches.

The record of a checkpoint is removed first. If the removal is interrupted, the remaining files count as a checkpoint
that never completed, and the next removal takes them. Rows of prediction tables, datasets, versions, aliases and
reports are never touched. `infra.storage.tables.maintenance.leftovers` says why removing files of committed batches
is safe.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import ValidationError

from infra.errors import JobError, RequestError
from infra.storage.checkpoints import CheckpointCorrupt, CheckpointNotFound, list_runs, read_record
from infra.storage.keys import (
    CHECKPOINT_RECORD,
    FOLDERS,
    MODELS,
    SCRATCH,
    books_folder,
    checkpoint_folder,
    checkpoint_record_key,
    checkpoints_folder,
    epoch_of,
    run_folder,
    table_folder,
)
from infra.storage.model_registry import ALIASES, ModelNotFound, ModelRegistry
from infra.storage.object_store import ObjectStat, ObjectStore
from infra.storage.tables.books import list_tables
from infra.storage.tables.maintenance.leftovers import table_leftovers
from infra.storage.tables.maintenance.rewrite import remove_replaced_books

METRICS = ("validation_loss", "loss")
"""Metrics that rank the checkpoints of a run. The first one recorded counts, and lower is better. A checkpoint that
records none ranks last."""


class RetentionUnsafe(JobError):
    """It is unknown which checkpoints are needed, so none is removed."""


@dataclass(frozen=True)
class Removal:
    """Something that was removed, or would be in a dry run."""

    kind: Literal[
        "checkpoint",
        "incomplete checkpoint",
        "unfinished write",
        "scratch",
        "parts",
        "records",
        "plan",
        "books",
        "index",
    ]
    uri: str
    objects: int
    size: int
    """Bytes."""
    reason: str


@dataclass
class Pruned:
    """The result of pruning a store."""

    removed: list[Removal] = field(default_factory=list)
    kept_checkpoints: int = 0
    """Number of complete checkpoints that stay."""
    active_runs: list[str] = field(default_factory=list)
    """Ids of runs that were skipped because they were modified recently."""

    @property
    def size(self) -> int:
        """Total size of what was removed, in bytes."""
        return sum(removal.size for removal in self.removed)


def prune(
    store: ObjectStore,
    *,
    keep_best: int = 3,
    older_than: timedelta = timedelta(hours=24),
    dry_run: bool = False,
) -> Pruned:
    """Remove unneeded checkpoints, and the leftovers of dead writers and of committed batches.

    Of each run, the best checkpoints, the last one and those of model versions stay. Of prediction tables, all rows
    stay. Of committed batches, it removes parts that were replaced or lost, and shard records. Of other batches, it
    removes only plans that have lost their number to another planner.

    Pruning is safe while others train, register and promote. Before each removal it checks the run and the versions
    again. After removing a record and before removing its files, it checks the versions once more, and puts the record
    back if a version of that checkpoint has appeared.

    Two races remain, both in runs that weren't modified within `older_than`:

    - A process that read a record before its removal registers the checkpoint after the last check. `fmnist train`
      doesn't: it registers the last checkpoint, which always stays.
    - A resumed run finds the leftovers of its next checkpoint while they are being removed, and completes them. Its
      record is removed with them, and the run continues with the next epoch.

    Args:
        store: store to prune.
        keep_best: number of checkpoints of each run to keep by `METRICS`, in addition to the last one and those of
            versions.
        older_than: minimum age. Runs and unfinished writes modified more recently are skipped. Versions of tables
            that were current since then stay readable.
        dry_run: remove nothing, and only return what would be removed.

    Raises:
        RetentionUnsafe: a version or an alias can't be read.
        StoreUnavailable: the store is down. What was removed before is gone, and no checkpoint is half removed.
    """
    before = datetime.now(UTC) - older_than
    pruned = Pruned()
    references = _References(store)
    for run_id in list_runs(store):
        _prune_run(_Run(store, run_id, before), references, pruned, keep_best=keep_best, dry_run=dry_run)
    for table in list_tables(store):
        pruned.removed += _prune_table(store, table, before, dry_run=dry_run)
    pruned.removed += _remove_scratch(store, before, dry_run=dry_run)
    pruned.removed += _remove_unfinished(store, before, dry_run=dry_run)
    return pruned


def prune_run(store: ObjectStore, run_id: str, *, keep_best: int) -> Pruned:
    """Remove the unneeded checkpoints of one finished run.

    Args:
        store: store that holds the run.
        run_id: id of a run that no process writes to.
        keep_best: number of checkpoints to keep by `METRICS`, in addition to the last one and those of versions.

    Raises:
        RetentionUnsafe, StoreUnavailable: as `prune`.
    """
    pruned = Pruned()
    finished = datetime.max.replace(tzinfo=UTC)
    _prune_run(_Run(store, run_id, finished), _References(store), pruned, keep_best=keep_best, dry_run=False)
    return pruned


class _References:
    """The checkpoints of model versions. Versions are immutable, so each is read once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[tuple[str, int], tuple[str, int]] = {}

    def now(self) -> set[tuple[str, int]]:
        """Return run and epoch of every current version and of every version that an alias points to."""
        for name in self._store.list_folders(MODELS):
            registry = ModelRegistry(self._store, name)
            try:
                aliases = [record.version for alias in ALIASES if (record := registry.alias(alias))]
                for number in {*registry.versions(), *aliases}:
                    if (name, number) not in self._known:
                        version = registry.version(number)
                        self._known[name, number] = (version.run_id, version.epoch)
            except (ValidationError, ModelNotFound) as error:
                raise RetentionUnsafe(
                    f"Pruning of {self._store.root} stopped: a version or alias of model {name} can't be read "
                    f"({str(error).splitlines()[0]}), so its checkpoint is unknown. Restore it."
                ) from None
        return set(self._known.values())


class _Run:
    """The current objects of a run."""

    def __init__(self, store: ObjectStore, run_id: str, before: datetime) -> None:
        self.store, self.run_id, self._before = store, run_id, before

    def epochs(self) -> dict[int, list[ObjectStat]] | None:
        """Return the objects of each epoch, or None if the run was modified recently."""
        found: dict[int, list[ObjectStat]] = defaultdict(list)
        checkpoints = f"{checkpoints_folder(self.run_id)}/"
        for stat in self.store.list(f"{run_folder(self.run_id)}/"):
            if stat.modified >= self._before:
                return None
            folder, slash, _ = stat.key.removeprefix(checkpoints).partition("/")
            epoch = epoch_of(folder) if stat.key.startswith(checkpoints) and slash else None
            if epoch is not None:
                found[epoch].append(stat)
        return found

    def record_key(self, epoch: int) -> str:
        return checkpoint_record_key(self.run_id, epoch)

    def is_complete(self, epoch: int, objects: list[ObjectStat]) -> bool:
        return any(stat.key == self.record_key(epoch) for stat in objects)

    def ranked(self, complete: list[int]) -> list[int]:
        """Sort the epochs with a readable record, the best first. Of equal ones, the later comes first."""
        losses = {}
        for epoch in complete:
            try:
                recorded = read_record(self.store, self.run_id, epoch).metrics
            except (CheckpointCorrupt, CheckpointNotFound):
                continue
            loss = next((recorded[name] for name in METRICS if name in recorded), math.inf)
            losses[epoch] = math.inf if math.isnan(loss) else loss
        return sorted(losses, key=lambda epoch: (losses[epoch], -epoch))

    def removal(
        self, kind: Literal["checkpoint", "incomplete checkpoint"], epoch: int, stats: list[ObjectStat]
    ) -> Removal:
        reason = (
            "not the last, nor among the best, nor a version's"
            if kind == "checkpoint"
            else f"has no {CHECKPOINT_RECORD}"
        )
        uri = self.store.uri(checkpoint_folder(self.run_id, epoch))
        return Removal(kind, uri, len(stats), sum(stat.size for stat in stats), reason)


def _prune_run(run: _Run, references: _References, pruned: Pruned, *, keep_best: int, dry_run: bool) -> None:
    try:
        run_folder(run.run_id)
    except RequestError:  # not a folder of ours
        return
    epochs = run.epochs()
    if epochs is None:
        pruned.active_runs.append(run.run_id)
        return
    complete = sorted(epoch for epoch, objects in epochs.items() if run.is_complete(epoch, objects))
    ranked = run.ranked(complete)
    # Checkpoints with an unreadable record stay, for a person to look at.
    keep = {*ranked[:keep_best], *complete[-1:], *(set(complete) - set(ranked))} | ({max(ranked)} if ranked else set())
    keep |= {epoch for run_id, epoch in references.now() if run_id == run.run_id}
    for epoch, objects in sorted(epochs.items()):
        if epoch in complete and epoch not in keep:
            removal = run.removal("checkpoint", epoch, objects)
            done = dry_run or _remove_checkpoint(run, epoch, references)
        elif epoch not in complete and epoch not in keep:
            removal = run.removal("incomplete checkpoint", epoch, objects)
            done = dry_run or _remove_leftovers(run, epoch, references)
        else:
            pruned.kept_checkpoints += epoch in complete
            continue
        if done:
            pruned.removed.append(removal)
        else:
            pruned.kept_checkpoints += epoch in complete


def _remove_checkpoint(run: _Run, epoch: int, references: _References) -> bool:
    """Remove a checkpoint unless something has changed. Return whether it is gone."""
    epochs = run.epochs()
    record_key = run.record_key(epoch)
    if epochs is None or not run.is_complete(epoch, epochs[epoch]) or (run.run_id, epoch) in references.now():
        return False
    record = run.store.read(record_key)
    run.store.delete(record_key)
    try:
        still_unneeded = (run.run_id, epoch) not in references.now()
    except BaseException:
        _put_back(run.store, record_key, record)
        raise
    if not still_unneeded:
        _put_back(run.store, record_key, record)
        return False
    for stat in epochs[epoch]:
        if stat.key != record_key:
            run.store.delete(stat.key)
    return True


def _put_back(store: ObjectStore, key: str, data: bytes) -> None:
    with store.publish(key) as stream:
        stream.write(data)


def _remove_leftovers(run: _Run, epoch: int, references: _References) -> bool:
    """Remove the files of a checkpoint without a record unless something has changed. Return whether they are gone."""
    epochs = run.epochs()
    if epochs is None or run.is_complete(epoch, epochs[epoch]) or (run.run_id, epoch) in references.now():
        return False
    for stat in epochs[epoch]:
        run.store.delete(stat.key)
    # If a writer has just completed the checkpoint, one of its files is gone, so it must not count as complete.
    run.store.delete(run.record_key(epoch))
    return True


def _prune_table(store: ObjectStore, table: str, before: datetime, *, dry_run: bool) -> Iterator[Removal]:
    try:
        table_folder(table)
    except RequestError:  # not a folder of ours
        return
    for left in table_leftovers(store, table, before, dry_run=dry_run):
        if not dry_run:
            for stat in left.objects:
                store.delete(stat.key)
        size = sum(stat.size for stat in left.objects)
        yield Removal(left.kind, store.uri(left.folder), len(left.objects), size, left.reason)
    hours = max(0.0, (datetime.now(UTC) - before) / timedelta(hours=1))
    if replaced := remove_replaced_books(store, table, hours=hours, dry_run=dry_run):
        yield Removal("books", store.uri(books_folder(table)), len(replaced), 0, "replaced by one file")


def _remove_scratch(store: ObjectStore, before: datetime, *, dry_run: bool) -> Iterator[Removal]:
    for stat in store.list(SCRATCH):
        if stat.modified < before:
            if not dry_run:
                store.delete(stat.key)
            yield Removal("scratch", store.uri(stat.key), 1, stat.size, "left by `fmnist store check`")


def _remove_unfinished(store: ObjectStore, before: datetime, *, dry_run: bool) -> Iterator[Removal]:
    for unfinished in store.list_unfinished(before):
        if unfinished.key.startswith(FOLDERS) or unfinished.is_scratch:
            if not dry_run:
                store.discard(unfinished)
            reason = f"its writer died after {unfinished.modified:%Y-%m-%d %H:%M} UTC"
            yield Removal("unfinished write", store.uri(unfinished.key), 1, unfinished.size, reason)
