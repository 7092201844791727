"""Begin a classification: find the model and plan the batches."""

import tempfile
from pathlib import Path

from infra.settings import load_settings
from infra.storage.model_registry import ModelRegistry, ModelVersion
from infra.storage.object_store import open_store
from tasks.classification.options import ReadOptions
from tasks.classification.plan import PlannedWork, plan_inputs
from tasks.classification.shared_folders import readable_folders
from tasks.step import step


@step("resolve model")
def resolve_model(reference: str) -> ModelVersion:
    """Find the model version for a version number or an alias.

    Raises:
        ModelNotFound: no version matches.
    """
    return ModelRegistry(open_store(load_settings().store)).resolve(reference)


@step("plan batch")
def plan_batch(
    inputs: list[str], table: str, model: ModelVersion, options: ReadOptions, *, retry_quarantined: bool = False
) -> PlannedWork:
    """Plan a batch of the images that the table doesn't hold yet for this model.

    Unfinished batches of the same model are completed first, so their images count as planned.

    Args:
        inputs: paths or URIs of files, folders, globs or lists of images.
        table: name of the prediction table.
        model: the model version to classify with.
        options: options for reading the images.
        retry_quarantined: try all files again that have images in quarantine, whatever the reason.

    Raises:
        InputNotFound: an input doesn't exist, or holds no images.
        RequestError: the table has batches of this model whose images were read with other options, or an input is
            local and the cluster has several machines.
    """
    settings = load_settings()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="planning-", dir=settings.state_dir) as scratch:
        return plan_inputs(
            open_store(settings.store),
            inputs,
            table=table,
            model=model,
            options=options,
            scratch=Path(scratch),
            retry_quarantined=retry_quarantined,
            readable_folders=readable_folders(settings),
        )
