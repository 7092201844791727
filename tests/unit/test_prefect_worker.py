"""How the worker of `fmnist serve` starts runs."""

import asyncio
import importlib
import json
import sys
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from flows.process import FIRST_STEP
from infra.prefect_worker import PREFECT_SETTINGS, flow_resolver, run_configuration


def prepared(entrypoint: str | None, **configured: Any) -> Any:
    """The configuration of a run of a deployment."""
    configuration = run_configuration(set())(**configured)
    deployment = DeploymentResponse(name="a-deployment", flow_id=uuid4(), entrypoint=entrypoint)
    configuration.prepare_for_flow_run(FlowRun(flow_id=deployment.flow_id), deployment)
    # Whether Prefect takes the command, or has a process find out first how the flow is run.
    return configuration.command if configuration._command_configured else None


def test_own_flows_begin_in_the_first_process() -> None:
    assert prepared("flows.scheduled.train") == f"{sys.executable} -m flows.process"


@pytest.mark.parametrize("entrypoint", ["elsewhere.flows.train", "flows/train.py:train", "flows.py:train", None])
def test_other_flows_are_run_as_prefect_runs_them(entrypoint: str | None) -> None:
    assert prepared(entrypoint) is None


def test_prefect_settings_of_a_deployment_reach_its_runs() -> None:
    """Prefect has the worker's own override them where a command is configured."""
    configuration = run_configuration(set())(env={"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "OTHER": "stays"})
    deployment = DeploymentResponse(name="a-deployment", flow_id=uuid4(), entrypoint="flows.scheduled.train")
    configuration.prepare_for_flow_run(FlowRun(flow_id=deployment.flow_id), deployment)
    assert json.loads(configuration.env[PREFECT_SETTINGS]) == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    assert configuration.env["OTHER"] == "stays"


def test_worker_imports_no_flow_of_ours_to_find_that_it_has_no_hooks() -> None:
    run = FlowRun(flow_id=uuid4())
    flow = asyncio.run(flow_resolver({run.id})(run))
    assert not flow.on_cancellation_hooks
    assert not flow.on_crashed_hooks


def test_flows_of_ours_have_no_hooks() -> None:
    """Or `flow_resolver` would keep them from being called."""
    for name in FIRST_STEP:
        flow = getattr(importlib.import_module("flows.scheduled"), name.replace("-", "_"))
        assert not flow.on_cancellation_hooks
        assert not flow.on_crashed_hooks


def test_command_of_a_deployment_stays() -> None:
    assert prepared("flows.scheduled.train", command="a command") == "a command"
