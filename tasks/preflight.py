"""Check a request before Ray and Prefect start. The tasks check the same things again."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmnist_model.weights import check_weights
from infra.cluster.address import check_ray_address
from infra.errors import RequestError
from infra.settings import Settings
from infra.storage.format import check_table, ensure_format
from infra.storage.keys import table_folder
from infra.storage.model_registry import ModelRegistry, ModelVersion, read_weights
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.planning.batches import read_catalog
from tasks.classification.inputs import check_inputs
from tasks.classification.options import ReadOptions
from tasks.classification.plan import check_options
from tasks.dataset import check_source
from tasks.training.begin import run_recipe
from tasks.training.worker_count import choose_workers


def check_training(
    settings: Settings, *, workers: str, overrides: Mapping[str, Any], resume: str | None, from_model: str | None
) -> None:
    """Refuse a training run that can't succeed.

    Raises:
        StoreUnavailable: the store is down.
        RequestError: the store isn't writable, no cluster listens at the address, there are fewer CPUs than workers,
            the run to resume has no checkpoint, or the model to start from doesn't exist.
        CheckpointCorrupt: the checkpoint of the model to start from is damaged.
        InvalidWeights: the weights to start from don't fit the network.
        InvalidDataset: a source file is missing, truncated, or not from Fashion-MNIST.
    """
    store = open_store(settings.store)
    store.check_writable()
    ensure_format(store)
    check_state_folder(settings)
    if settings.ray_address:
        check_ray_address(settings.ray_address)
    else:
        choose_workers(workers, cpus=os.cpu_count() or 1, gpus=_visible_gpus())
    check_source(settings)
    if resume:
        run_recipe(store, resume, overrides)
    if from_model:
        _check_model(store, from_model)


def check_classification(
    settings: Settings, *, inputs: list[str], table: str, model: str, options: ReadOptions
) -> None:
    """Refuse a classification run that can't succeed.

    Raises:
        StoreUnavailable, InputsUnavailable: the store or the place of the inputs is down.
        RequestError: the store isn't writable, no cluster listens at the address, the model or an input doesn't exist,
            or the table holds predictions of this model that were made with other options.
        JobStopped: the store lacks a part of the table's index, or the number of a batch.
        CheckpointCorrupt: the model's checkpoint is damaged.
        InvalidWeights: the model's weights don't fit the network.
    """
    store = open_store(settings.store)
    table_folder(table)
    check_table(store, table)
    check_inputs(inputs, options)
    version = _check_model(store, model)
    check_options(read_catalog(store, table), str(version.version), options)
    store.check_writable()
    check_state_folder(settings)
    if settings.ray_address:
        check_ray_address(settings.ray_address)


def check_state_folder(settings: Settings) -> None:
    """Check that the folder for this machine's own state is writable.

    Raises:
        RequestError: it isn't.
    """
    folder = settings.state_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"FMNIST_STATE_DIR: {folder} can't be written: {error.strerror}. Make it writable, or set another folder."
        ) from None


def _check_model(store: ObjectStore, model: str) -> ModelVersion:
    version = ModelRegistry(store).resolve(model)
    check_weights(*read_weights(store, version))
    return version


def _visible_gpus() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
