"""Train as one rank of a Ray Train worker group."""

import logging
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from fmnist_model.dataset import LabelledImages, check_classes, hold_out
from fmnist_model.errors import InvalidDataset
from infra.cluster.worker_logs import forward_logs
from infra.storage.checkpoints import (
    STATE,
    WEIGHTS,
    CheckpointCorrupt,
    CheckpointNotFound,
    list_checkpoints,
    read_files,
    read_record,
    remove_checkpoint,
)
from infra.storage.datasets import DatasetRecord
from infra.storage.model_registry import ModelRegistry, read_weights
from infra.storage.object_store import ObjectStore, open_store
from tasks.training.recorder import RunRecorder
from tasks.training.run import RunToTrain, TrainedRun, TrainingJob
from tasks.training.splits import load_split

if TYPE_CHECKING:
    from fmnist_model.network import NeuralNetwork
    from fmnist_model.training.loop import TrainingRun

_log = logging.getLogger(__name__)


def load_images(store: str, dataset: DatasetRecord, held_out: int) -> tuple[LabelledImages, LabelledImages]:
    """Load the training images and the validation images, and check the test images.

    Args:
        store: root URI of the store.
        dataset: a dataset with the splits `train` and `test`.
        held_out: number of training images to hold out for validation.

    Raises:
        InvalidDataset: a split is damaged, or a class has no training image.
    """
    data = load_split(open_store(store), dataset, "train")
    check_classes(data, f"The split train of {dataset.name}")
    parts = hold_out(data, held_out)
    load_split(open_store(store), dataset, "test")  # find errors in it now, and not when training is done
    return parts


def train_worker(config: dict[str, TrainingJob]) -> TrainedRun | Exception | None:
    """Train as one rank. Ray Train calls this function in each worker.

    Args:
        config: `{"job": TrainingJob}`. Ray Train passes arguments as a dictionary.

    Returns:
        The finished run on rank 0, and None on the others. If training fails and a retry would fail too, the error is
        returned instead of raised, because Ray Train retries a worker that raises.
    """
    import ray
    import torch.distributed
    from ray.train.torch import get_device

    from fmnist_model.training.divergence import TrainingDiverged
    from fmnist_model.training.loop import TrainingRun

    job, context, device = config["job"], ray.train.get_context(), get_device()
    rank, workers = context.get_world_rank(), context.get_world_size()
    forward_logs(f"rank {rank}")
    store = open_store(job.store)
    try:
        data, validation = ray.get(job.images)
    except InvalidDataset as error:
        return _unwrap(error)
    checkpoint, warnings = _agree_on_checkpoint(store, job.run.id, rank=rank, workers=workers)
    try:
        initial = _initial_network(store, job.run) if checkpoint is None else None
    except (CheckpointCorrupt, CheckpointNotFound) as error:
        return error
    group = torch.distributed.group.WORLD if workers > 1 else None
    run = TrainingRun(job.run.recipe, data, device, group, validation=validation, initial=initial)
    if checkpoint is not None:
        _restore(store, job.run.id, checkpoint, run)
    share = run.recipe.global_batch_size // workers
    _log.info("Rank %d of %d trains on %s with about %d images per step.", rank, workers, device, share)
    recorder = RunRecorder(store, job, run, workers=workers, device=str(device)) if rank == 0 else None
    with recorder or nullcontext():
        try:
            for epoch in run.epochs(recorder.on_step if recorder else None):
                if recorder:
                    recorder.on_epoch(epoch)
        except TrainingDiverged as error:  # raised on all ranks, because they share the loss
            if recorder:
                recorder.on_failure(error)
            return error
    return recorder.finish(warnings) if recorder else None


def _unwrap(error: InvalidDataset) -> InvalidDataset:
    """Remove the remote traceback that Ray adds to the message of an error."""
    return InvalidDataset(str(error).splitlines()[-1].removeprefix(f"{InvalidDataset.__module__}.InvalidDataset: "))


def _agree_on_checkpoint(store: ObjectStore, run_id: str, *, rank: int, workers: int) -> tuple[int | None, list[str]]:
    """Choose the checkpoint to resume from on rank 0, and send its epoch to all ranks."""
    import torch.distributed

    found = [_newest_undamaged(store, run_id) if rank == 0 else (None, [])]
    if workers > 1:
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def _newest_undamaged(store: ObjectStore, run_id: str) -> tuple[int | None, list[str]]:
    """Find the newest undamaged checkpoint, and remove damaged ones after it, so that their epochs are trained again.

    A checkpoint with undamaged weights that belong to a model version is kept, although no run can resume from it.

    Returns:
        The epoch, or None without an undamaged checkpoint, and a warning for each damaged one.
    """
    warnings = []
    for epoch in reversed(list_checkpoints(store, run_id)):
        try:
            read_files(store, read_record(store, run_id, epoch))
        except CheckpointCorrupt as error:
            needed = _belongs_to_version(store, run_id, epoch)
            action = "skipped" if needed else "removed"
            warnings.append(
                f"The checkpoint of epoch {epoch} is damaged, so it is {action} and the epoch is trained again: {error}"
            )
            _log.warning(warnings[-1])
            if not needed:
                remove_checkpoint(store, run_id, epoch)
        else:
            return epoch, warnings
    return None, warnings


def _belongs_to_version(store: ObjectStore, run_id: str, epoch: int) -> bool:
    """Check whether a model version was registered with the checkpoint's weights and they are undamaged."""
    for version in ModelRegistry(store).newest_first():
        if (version.run_id, version.epoch) == (run_id, epoch):
            with suppress(CheckpointCorrupt, CheckpointNotFound):
                read_weights(store, version)
                return True
    return False


def _initial_network(store: ObjectStore, run: RunToTrain) -> "NeuralNetwork | None":
    """Load the weights that a new run starts with. None for random weights.

    Raises:
        CheckpointNotFound: no model version has the weights any more, or their checkpoint is gone.
        CheckpointCorrupt: the weights are damaged.
    """
    from fmnist_model.network import load_weights

    sha256 = run.recipe.initial_weights
    if not sha256:
        return None
    if run.initial is None:
        raise CheckpointNotFound(
            f"No version of the model has the weights that the run starts with any more (SHA-256 {sha256[:12]}…). "
            "Restore the version's record, or start a new run."
        )
    return load_weights(*read_weights(store, run.initial))


def _restore(store: ObjectStore, run_id: str, epoch: int, run: "TrainingRun") -> None:
    from fmnist_model.network import load_weights

    record = read_record(store, run_id, epoch)
    files = read_files(store, record)
    run.load_state(load_weights(files[WEIGHTS], store.uri(record.key)), files[STATE])
