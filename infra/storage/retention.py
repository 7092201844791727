"""What a store need not keep: checkpoints that nobody will ask for, and what dead writers left.

A checkpoint is removed record first, so that a removal that is cut short leaves no checkpoint rather than half of one;
what is left of it then counts as never completed, and goes the next time. Prediction tables, data sets, versions,
aliases and reports are never touched.
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
    checkpoint_folder,
    checkpoint_record_key,
    checkpoints_folder,
    epoch_of,
    run_folder,
)
from infra.storage.model_registry import ALIASES, ModelNotFound, ModelRegistry
from infra.storage.object_store import ObjectStat, ObjectStore

METRICS = ("validation_loss", "loss")
"""By which a run's checkpoints are ranked: by the first that they record, and the lowest is the best. One that records
none ranks last."""


class RetentionUnsafe(JobError):
    """It can't be known which checkpoints are needed, so none is removed."""


@dataclass(frozen=True)
class Removal:
    """Something that was removed, or would be."""

    kind: Literal["checkpoint", "incomplete checkpoint", "unfinished write", "scratch"]
    uri: str
    objects: int
    size: int
    """Bytes."""
    reason: str


@dataclass
class Pruned:
    """What became of a store."""

    removed: list[Removal] = field(default_factory=list)
    kept_checkpoints: int = 0
    """Complete ones."""
    active_runs: list[str] = field(default_factory=list)
    """Ids of runs that were left alone, since something was written to them a short time ago."""

    @property
    def size(self) -> int:
        """Bytes of what was removed."""
        return sum(removal.size for removal in self.removed)


def prune(
    store: ObjectStore,
    *,
    keep_best: int = 3,
    older_than: timedelta = timedelta(hours=24),
    dry_run: bool = False,
) -> Pruned:
    """Remove checkpoints that are neither among a run's best, nor its last, nor any version's; and what writers left.

    Args:
        store: what to prune.
        keep_best: checkpoints of each run to keep by `METRICS`, besides the last one and those of versions.
        older_than: a run to which anything was written since is left alone as a whole, and so is an unfinished write.
        dry_run: remove nothing, and tell what would be.

    Raises:
        RetentionUnsafe: a version or an alias can't be read.
        StoreUnavailable: the store is down; what was removed until then is gone, and nothing is half removed.

    Safe beside training, registration and promotion: a run is looked at again right before each removal, and so are the
    versions, which are looked at once more between the removal of a record and that of its files; where a version of
    that checkpoint came in between, the record is put back. What remains: somebody who holds a record that was read
    before its removal registers that checkpoint after the second look. That takes a checkpoint that is neither its
    run's last nor among its best, in a run where nothing was written for `older_than`; `fmnist train` registers the
    last one, minutes after it was written. Likewise a run that is resumed after so long a time may, while the leftovers
    of its next checkpoint are being removed, find one there and build on it; the record that it writes is then removed
    with them, and the run goes on with the next epoch.
    """
    before = datetime.now(UTC) - older_than
    pruned = Pruned()
    references = _References(store)
    for run_id in list_runs(store):
        _prune_run(_Run(store, run_id, before), references, pruned, keep_best=keep_best, dry_run=dry_run)
    pruned.removed += _remove_scratch(store, before, dry_run=dry_run)
    pruned.removed += _remove_unfinished(store, before, dry_run=dry_run)
    return pruned


def prune_run(store: ObjectStore, run_id: str, *, keep_best: int) -> Pruned:
    """Remove the checkpoints of one finished run that are neither among its best, nor its last, nor any version's.

    Args:
        store: where the run is.
        run_id: a run to which nobody writes any more.
        keep_best: checkpoints to keep by `METRICS`, besides the last one and those of versions.

    Raises:
        RetentionUnsafe, StoreUnavailable: as `prune`.
    """
    pruned = Pruned()
    finished = datetime.max.replace(tzinfo=UTC)
    _prune_run(_Run(store, run_id, finished), _References(store), pruned, keep_best=keep_best, dry_run=False)
    return pruned


class _References:
    """The checkpoints that versions stand for. Versions are immutable, so each is read once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[tuple[str, int], tuple[str, int]] = {}

    def now(self) -> set[tuple[str, int]]:
        """Run and epoch of every version there is at this moment, and of every version that an alias points to."""
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
                    f"Nothing more is removed from {self._store.root}: a version or alias of model {name} can't be "
                    f"read ({str(error).splitlines()[0]}), so that it can't be known which checkpoint it stands for. "
                    "Restore it."
                ) from None
        return set(self._known.values())


class _Run:
    """One run's objects, as they are at the moment of asking."""

    def __init__(self, store: ObjectStore, run_id: str, before: datetime) -> None:
        self.store, self.run_id, self._before = store, run_id, before

    def epochs(self) -> dict[int, list[ObjectStat]] | None:
        """What lies in each epoch's folder; None where something was written to the run a short time ago."""
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
        """The epochs whose record can be read, the best first; where two are equal, the later one."""
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
    except RequestError:  # a folder that no run of ours made
        return
    epochs = run.epochs()
    if epochs is None:
        pruned.active_runs.append(run.run_id)
        return
    complete = sorted(epoch for epoch, objects in epochs.items() if run.is_complete(epoch, objects))
    ranked = run.ranked(complete)
    # One whose record can't be read is left for a person to look at.
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
    """Remove a checkpoint unless something changed; whether it is gone."""
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
    """Remove what a writer left who never came to write the record, unless somebody goes on with it."""
    epochs = run.epochs()
    if epochs is None or run.is_complete(epoch, epochs[epoch]) or (run.run_id, epoch) in references.now():
        return False
    for stat in epochs[epoch]:
        run.store.delete(stat.key)
    # A checkpoint that was completed meanwhile with a file that is gone now must not be taken for whole.
    run.store.delete(run.record_key(epoch))
    return True


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
