"""Begin a training run, or go on with one."""

import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from fmnist_model.recipe import PRESETS
from infra.checkpoints import list_checkpoints, read_record
from infra.errors import RequestError
from infra.object_store import ObjectStore, open_store
from infra.settings import load_settings


@dataclass(frozen=True)
class RunToTrain:
    """A run's id and its recipe."""

    id: str
    recipe: dict[str, Any]


@task(name="begin run", cache_policy=NO_CACHE)
def begin_run(preset: str, overrides: dict[str, Any], resume: str | None) -> RunToTrain:
    """Name a new run and fix its recipe; or, with `resume`, take up a run with the recipe that it has.

    Raises:
        RequestError: the run to resume has no complete checkpoint.
    """
    store = open_store(load_settings().store)
    store.check_writable()
    if resume:
        return RunToTrain(resume, run_recipe(store, resume))
    run_id = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(2)}"
    return RunToTrain(run_id, asdict(replace(PRESETS[preset], **overrides)))


def run_recipe(store: ObjectStore, run_id: str) -> dict[str, Any]:
    """The recipe of a run that is to be resumed.

    Raises:
        RequestError: the run has no complete checkpoint.
    """
    complete = list_checkpoints(store, run_id)
    if not complete:
        raise RequestError(f"{store.root} has no run {run_id} with a complete checkpoint; there is nothing to resume.")
    return read_record(store, run_id, complete[-1]).parameters
