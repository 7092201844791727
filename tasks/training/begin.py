"""Start a training run, or resume one."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fmnist_model.training.recipe import PRESETS, RecipeMismatch, TrainingRecipe
from fmnist_model.weights import check_weights
from infra.errors import RequestError
from infra.orchestration.flow_run import root_flow_run
from infra.settings import load_settings
from infra.storage.checkpoints import Checkpoint, CheckpointCorrupt, list_checkpoints, read_record
from infra.storage.model_registry import ModelRegistry, ModelVersion, read_weights
from infra.storage.object_store import ObjectStore, open_store
from tasks.step import step
from tasks.training.run import RunToTrain


@step("begin run")
def begin_run(
    preset: str, overrides: Mapping[str, Any], resume: str | None, from_model: str | None = None
) -> RunToTrain:
    """Name a new run and fix its recipe, or resume a run with the recipe that it has.

    Args:
        preset: name of the recipe to start from.
        overrides: fields of the recipe with other values. For a run that is resumed, the values that it must have.
        resume: id of the run to resume. None starts a new run.
        from_model: version or alias of the model whose weights a new run starts with. None for random weights.

    Raises:
        RequestError: the run to resume has no complete checkpoint or has another recipe, or the model doesn't exist.
        CheckpointCorrupt: the checkpoint of the model is damaged.
        InvalidWeights: the model's weights don't fit the network.
    """
    store = open_store(load_settings().store)
    store.check_writable()
    run_id = resume or _new_run_id()
    if resume or list_checkpoints(store, run_id):  # a retried flow run may already have checkpoints
        recipe = run_recipe(store, run_id, overrides)
        return RunToTrain(run_id, recipe, _version_with(store, recipe.initial_weights))
    initial = ModelRegistry(store).resolve(from_model) if from_model else None
    if initial is not None:
        check_weights(*read_weights(store, initial))
    recipe = replace(PRESETS[preset], **overrides, initial_weights=initial.weights_sha256 if initial else "")
    return RunToTrain(run_id, recipe, initial)


def run_recipe(store: ObjectStore, run_id: str, overrides: Mapping[str, Any]) -> TrainingRecipe:
    """Read the recipe of a run to resume, and check that it has the requested values.

    Raises:
        RequestError: the run has no complete checkpoint, or its recipe belongs to another release or differs from
            `overrides`.
        CheckpointCorrupt: all records of the run's checkpoints are damaged.
    """
    complete = list_checkpoints(store, run_id)
    if not complete:
        raise RequestError(
            f"{store.root} has no run {run_id} with a complete checkpoint to resume from. Check the id, or leave out "
            "--resume to start a new run."
        )
    for epoch in reversed(complete):
        try:
            recipe = _recipe_in(read_record(store, run_id, epoch))
        except CheckpointCorrupt as error:
            damage = error
        else:
            _refuse_change(run_id, recipe, overrides)
            return recipe
    raise damage


def _new_run_id() -> str:
    """Make a run id that stays the same when the flow run is retried."""
    flow_run = root_flow_run()
    if flow_run is None:
        return f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(2)}"
    return f"{flow_run.created:%Y-%m-%dT%H-%M-%S}-{flow_run.id.hex[-4:]}"


def _recipe_in(record: Checkpoint) -> TrainingRecipe:
    try:
        return TrainingRecipe.from_record(record.parameters)
    except RecipeMismatch as error:
        raise RequestError(
            f"Run {record.run_id} can't be resumed: its recipe is from another release "
            f"({record.provenance.code_version}), which differs in {', '.join(error.names)}. Resume it with that "
            "release, or start a new run."
        ) from None


def _refuse_change(run_id: str, recipe: TrainingRecipe, overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        if (current := getattr(recipe, name)) != value:
            raise RequestError(
                f"Run {run_id} has {name.replace('_', ' ')} {current}, not {value}. A resumed run keeps its recipe. "
                "Leave the option out, or start a new run. --from-model starts it with the weights of a model."
            )


def _version_with(store: ObjectStore, weights_sha256: str) -> ModelVersion | None:
    """Find the newest version with these weights. None if no weights are named, or no version has them."""
    if not weights_sha256:
        return None
    found = (version for version in ModelRegistry(store).newest_first() if version.weights_sha256 == weights_sha256)
    return next(found, None)
