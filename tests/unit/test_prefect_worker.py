"""How the worker of `fmnist serve` starts runs."""

import sys
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from infra.prefect_worker import run_configuration


def prepared(entrypoint: str | None, **configured: Any) -> Any:
    """The configuration of a run of a deployment."""
    configuration = run_configuration()(**configured)
    deployment = DeploymentResponse(name="a-deployment", flow_id=uuid4(), entrypoint=entrypoint)
    configuration.prepare_for_flow_run(FlowRun(flow_id=deployment.flow_id), deployment)
    # Whether Prefect takes the command, or has a process find out first how the flow is run.
    return configuration.command if configuration._command_configured else None


def test_own_flows_begin_in_the_first_process() -> None:
    assert prepared("flows.scheduled.train") == f"{sys.executable} -m flows.process"


@pytest.mark.parametrize("entrypoint", ["elsewhere.flows.train", "flows/train.py:train", None])
def test_other_flows_are_run_as_prefect_runs_them(entrypoint: str | None) -> None:
    assert prepared(entrypoint) is None


def test_command_of_a_deployment_stays() -> None:
    assert prepared("flows.scheduled.train", command="a command") == "a command"
