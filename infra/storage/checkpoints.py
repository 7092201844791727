"""Checkpoints: folders of files with `checkpoint.json` as commit marker.

    runs/<run id>/checkpoints/epoch-0007/{model.safetensors, trainer.pt, checkpoint.json}

`checkpoint.json` is written last and records the size and SHA-256 of each file. So a half-written checkpoint doesn't
count, and a damaged one is never used.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import JobError, RequestError
from infra.provenance import Provenance
from infra.storage.keys import (
    CHECKPOINT_RECORD,
    RUNS,
    checkpoint_folder,
    checkpoint_record_key,
    checkpoints_folder,
    epoch_of,
)
from infra.storage.object_store import ObjectExists, ObjectNotFound, ObjectStore
from infra.storage.object_store.interface import is_key

WEIGHTS = "model.safetensors"
STATE = "trainer.pt"
"""File with what a resumed run needs in addition to the weights."""


class CheckpointCorrupt(JobError):
    """A file of a checkpoint is missing, or holds other bytes than were written."""


class CheckpointNotFound(RequestError):
    """The named checkpoint doesn't exist or is incomplete."""


class CheckpointFile(BaseModel):
    """One file of a checkpoint."""

    name: str
    key: str
    """Relative to the store's root."""
    size: int
    """Bytes."""
    sha256: str


class Checkpoint(BaseModel):
    """The content of `checkpoint.json`."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # the default writes a loss of NaN as null

    run_id: str
    epoch: int
    """Epochs completed."""
    files: list[CheckpointFile]
    metrics: dict[str, float]
    steps: dict[str, list[float]] = {}
    """Metrics of each step of the epoch, by name, such as loss and learning rate. A separate file would cost one more
    request per epoch to write, and one to read."""
    parameters: dict[str, Any]
    data_version: str
    provenance: Provenance

    @property
    def key(self) -> str:
        """Key of the checkpoint's folder."""
        return checkpoint_folder(self.run_id, self.epoch)


def write_checkpoint(
    store: ObjectStore,
    *,
    run_id: str,
    epoch: int,
    files: Mapping[str, bytes],
    metrics: Mapping[str, float],
    parameters: Mapping[str, Any],
    data_version: str,
    steps: Mapping[str, Sequence[float]] | None = None,
) -> Checkpoint:
    """Write the files, then the record that commits them as a checkpoint.

    If another attempt at the same epoch left a file with other bytes, that file stays and the new one gets another
    name. If another attempt has committed the epoch, its checkpoint is returned.
    """
    folder = checkpoint_folder(run_id, epoch)
    checkpoint = Checkpoint(
        run_id=run_id,
        epoch=epoch,
        files=[_write_file(store, folder, name, data) for name, data in files.items()],
        metrics=dict(metrics),
        steps={name: list(values) for name, values in (steps or {}).items()},
        parameters=dict(parameters),
        data_version=data_version,
        provenance=Provenance.now(),
    )
    try:
        store.create(checkpoint_record_key(run_id, epoch), checkpoint.model_dump_json(indent=2).encode())
    except ObjectExists:
        return read_record(store, run_id, epoch)
    return checkpoint


def _write_file(store: ObjectStore, folder: str, name: str, data: bytes) -> CheckpointFile:
    sha256 = hashlib.sha256(data).hexdigest()
    for key in (f"{folder}/{name}", f"{folder}/{sha256[:16]}-{name}"):
        try:
            store.create(key, data)
        except ObjectExists:
            if hashlib.sha256(store.read(key)).hexdigest() != sha256:
                continue
        return CheckpointFile(name=name, key=key, size=len(data), sha256=sha256)
    raise CheckpointCorrupt(f"{store.uri(key)} is damaged: its SHA-256 isn't the one in its name. Remove it.")


def list_checkpoints(store: ObjectStore, run_id: str) -> list[int]:
    """List the epochs of a run's complete checkpoints, in order."""
    names = store.list_folders(f"{checkpoints_folder(run_id)}/")
    epochs = (epoch for name in names if (epoch := epoch_of(name)) is not None)
    return [epoch for epoch in epochs if store.stat(checkpoint_record_key(run_id, epoch)) is not None]


def list_runs(store: ObjectStore) -> list[str]:
    """List the ids of all training runs, in order."""
    return list(store.list_folders(RUNS))


def read_record(store: ObjectStore, run_id: str, epoch: int) -> Checkpoint:
    """Read the record of a complete checkpoint.

    Raises:
        CheckpointNotFound: the checkpoint doesn't exist or is incomplete.
        CheckpointCorrupt: the record is malformed, another checkpoint's, or names files outside its own folder.
    """
    folder = checkpoint_folder(run_id, epoch)
    key = checkpoint_record_key(run_id, epoch)
    try:
        checkpoint = Checkpoint.model_validate_json(store.read(key))
    except ObjectNotFound:
        complete = ", ".join(str(number) for number in list_checkpoints(store, run_id)) or "none"
        raise CheckpointNotFound(
            f"Run {run_id} has no complete checkpoint of epoch {epoch} in {store.root} (complete: {complete})."
        ) from None
    except ValidationError as error:
        raise CheckpointCorrupt(
            f"{store.uri(key)} is not a checkpoint record: {error.errors()[0]['msg']}. Restore the object."
        ) from None
    if (checkpoint.run_id, checkpoint.epoch) != (run_id, epoch):
        raise CheckpointCorrupt(f"{store.uri(key)} is the record of another checkpoint. Restore the object.")
    if any(file.key.rpartition("/")[0] != folder or not is_key(file.key) for file in checkpoint.files):
        raise CheckpointCorrupt(f"{store.uri(key)} names files outside its own folder. Restore the object.")
    return checkpoint


def read_files(store: ObjectStore, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Read a checkpoint's files by name, and verify each against its recorded SHA-256.

    Raises:
        CheckpointCorrupt: a file is missing or holds other bytes than were written.
    """
    return {file.name: _read_verified(store, checkpoint, file) for file in checkpoint.files}


def read_file(store: ObjectStore, checkpoint: Checkpoint, name: str) -> bytes:
    """Read one file of a checkpoint, and verify it as `read_files` does."""
    for file in checkpoint.files:
        if file.name == name:
            return _read_verified(store, checkpoint, file)
    raise CheckpointCorrupt(f"{store.uri(checkpoint.key)} has no file {name}. Choose another epoch.")


def remove_checkpoint(store: ObjectStore, run_id: str, epoch: int) -> None:
    """Remove an unusable checkpoint, so that its epoch can be written again. The record goes first."""
    folder = checkpoint_folder(run_id, epoch)
    store.delete(checkpoint_record_key(run_id, epoch))
    for stat in list(store.list(f"{folder}/")):
        store.delete(stat.key)


def _read_verified(store: ObjectStore, checkpoint: Checkpoint, file: CheckpointFile) -> bytes:
    advice = f"Restore the object, or resume from another epoch than {checkpoint.epoch}."
    try:
        data = store.read(file.key)
    except ObjectNotFound:
        raise CheckpointCorrupt(
            f"{store.uri(file.key)} is missing, but {CHECKPOINT_RECORD} records it. {advice}"
        ) from None
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != file.sha256:
        raise CheckpointCorrupt(
            f"{store.uri(file.key)} has SHA-256 {sha256[:12]}…, but {CHECKPOINT_RECORD} records {file.sha256[:12]}…. "
            f"{advice}"
        )
    return data
