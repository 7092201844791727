"""What a deployment's run begins with."""

import importlib

import pytest
import yaml

from flows.process import FIRST_STEP
from infra.deployments import DEFINITIONS


def test_each_deployment_has_its_first_step_imported_ahead() -> None:
    deployments = yaml.safe_load(DEFINITIONS.read_text())["deployments"]
    assert {deployment["name"] for deployment in deployments} == set(FIRST_STEP)


@pytest.mark.parametrize("flow", sorted(FIRST_STEP))
def test_what_is_imported_ahead_is_there(flow: str) -> None:
    for module in FIRST_STEP[flow]:
        importlib.import_module(module)
