"""What a deployment's run begins with."""

import importlib

import pytest
import yaml

from flows.process import FIRST_STEP, ahead
from infra.orchestration.deployments import DEFINITIONS


def test_each_deployed_flow_has_its_first_step_imported_ahead() -> None:
    entrypoints = [one["entrypoint"] for one in yaml.safe_load(DEFINITIONS.read_text())["deployments"]]
    flows = [
        getattr(importlib.import_module(module), name) for module, _, name in (e.rpartition(".") for e in entrypoints)
    ]
    assert {flow.name for flow in flows} == set(FIRST_STEP)


def test_what_fails_ahead_of_a_run_is_told_and_left_to_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with ahead("joining Ray"):
        raise ConnectionError("no cluster there")
    assert capsys.readouterr().err == "Ahead of the run, joining Ray failed: ConnectionError: no cluster there\n"


@pytest.mark.parametrize("flow", sorted(FIRST_STEP))
def test_what_is_imported_ahead_is_there(flow: str) -> None:
    for module in FIRST_STEP[flow]:
        importlib.import_module(module)
