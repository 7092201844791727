"""Begin a training run, or go on with one."""

import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from fmnist_model.recipe import PRESETS
from infra.object_store import open_store
from infra.settings import load_settings
from tasks.training import run_recipe


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
