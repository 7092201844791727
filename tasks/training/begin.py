"""Begin a training run, or go on with one."""

import secrets
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Any

from fmnist_model.training.recipe import PRESETS, TrainingRecipe
from fmnist_model.weights import check_weights
from infra.errors import RequestError
from infra.orchestration.flow_run import root_flow_run
from infra.settings import load_settings
from infra.storage.checkpoints import Checkpoint, CheckpointCorrupt, list_checkpoints, read_record
from infra.storage.model_registry import ModelRegistry, ModelVersion, read_weights
from infra.storage.object_store import ObjectStore, open_store
from tasks.step import step
from tasks.training.trained_run import RunToTrain


@step("begin run")
def begin_run(preset: str, overrides: dict[str, Any], resume: str | None, from_model: str | None = None) -> RunToTrain:
    """Name a new run and fix its recipe; or, with `resume`, take up a run with the recipe that it has.

    Args:
        preset: name of the recipe to start from.
        overrides: fields of the recipe that are to be otherwise; of a run that is resumed, those it has.
        resume: id of the run to go on with.
        from_model: version or alias of the model whose weights a new run begins with.

    Raises:
        RequestError: the run to resume has no complete checkpoint or another recipe's, or there is no such model.
        CheckpointCorrupt: the checkpoint of the model is not the one that was written.
        InvalidWeights: its weights are another network's.
    """
    store = open_store(load_settings().store)
    store.check_writable()
    run_id = resume or _new_run_id()
    if resume or list_checkpoints(store, run_id):  # the latter: a retry of the flow run that began it
        recipe = run_recipe(store, run_id, overrides)
        return RunToTrain(run_id, recipe, _version_with(store, recipe["initial_weights"]))
    initial = ModelRegistry(store).resolve(from_model) if from_model else None
    if initial is not None:
        check_weights(*read_weights(store, initial))
    weights = initial.weights_sha256 if initial else ""
    return RunToTrain(run_id, asdict(replace(PRESETS[preset], **overrides, initial_weights=weights)), initial)


def _new_run_id() -> str:
    """Of this flow run, and of its retries."""
    flow_run = root_flow_run()
    if flow_run is None:
        return f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(2)}"
    return f"{flow_run.began:%Y-%m-%dT%H-%M-%S}-{flow_run.id.hex[-4:]}"


def run_recipe(store: ObjectStore, run_id: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run that is to be resumed.

    Raises:
        RequestError: the run has no complete checkpoint, its recipe is none of this release's, or other than asked for.
        CheckpointCorrupt: it has, but not one of their records can be read.
    """
    complete = list_checkpoints(store, run_id)
    if not complete:
        raise RequestError(f"{store.root} has no run {run_id} with a complete checkpoint; there is nothing to resume.")
    for epoch in reversed(complete):
        try:
            recipe = _checked_recipe(read_record(store, run_id, epoch))
        except CheckpointCorrupt as error:
            damage = error
        else:
            _refuse_change(run_id, recipe, overrides)
            return recipe
    raise damage


def _refuse_change(run_id: str, recipe: dict[str, Any], overrides: dict[str, Any]) -> None:
    for name, value in overrides.items():
        if recipe[name] != value:
            raise RequestError(
                f"Run {run_id} has {name.replace('_', ' ')} {recipe[name]}, not {value}: a resumed run keeps its "
                "recipe. Leave the option out, or begin a new run (--from-model begins with a model's weights)."
            )


def _checked_recipe(record: Checkpoint) -> dict[str, Any]:
    known = {field.name for field in fields(TrainingRecipe)}
    if other := sorted(record.parameters.keys() ^ known):
        raise RequestError(
            f"Run {record.run_id} can't be resumed: its recipe is of another release ({record.provenance.code_version})"
            f", which differs in {', '.join(other)}. Resume it with that release, or begin a new run."
        )
    return record.parameters


def _version_with(store: ObjectStore, weights_sha256: str) -> ModelVersion | None:
    """The newest version with these weights, if any are named and there is one."""
    if not weights_sha256:
        return None
    found = (version for version in ModelRegistry(store).newest_first() if version.weights_sha256 == weights_sha256)
    return next(found, None)
