"""How the worker of `fmnist serve` starts runs."""

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.events import Event, Resource

from flows.process import FIRST_STEP
from infra.orchestration.worker import PREFECT_SETTINGS, cancelling_observer, flow_resolver, run_configuration


def prepared(entrypoint: str | None, **configured: Any) -> Any:
    """The configuration of a run of a deployment."""
    configuration = run_configuration(set())(**configured)
    deployment = DeploymentResponse(name="a-deployment", flow_id=uuid4(), entrypoint=entrypoint)
    configuration.prepare_for_flow_run(FlowRun(flow_id=deployment.flow_id), deployment)
    # Whether Prefect takes the command, or has a process find out first how the flow is run.
    return configuration.command if configuration._command_configured else None


def test_own_flows_begin_in_the_first_process() -> None:
    assert prepared("flows.deployed.train") == f"{sys.executable} -m flows.process"


@pytest.mark.parametrize("entrypoint", ["elsewhere.flows.train", "flows/train.py:train", "flows.py:train", None])
def test_other_flows_are_run_as_prefect_runs_them(entrypoint: str | None) -> None:
    assert prepared(entrypoint) is None


def test_prefect_settings_of_a_deployment_reach_its_runs() -> None:
    """Prefect has the worker's own override them where a command is configured."""
    configuration = run_configuration(set())(env={"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "OTHER": "stays"})
    deployment = DeploymentResponse(name="a-deployment", flow_id=uuid4(), entrypoint="flows.deployed.train")
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
        flow = getattr(importlib.import_module("flows.deployed"), name.replace("-", "_"))
        assert not flow.on_cancellation_hooks
        assert not flow.on_crashed_hooks


def told_of_cancels(*seconds_ago: float) -> int:
    """How many of these words, all of one run, its executor hears."""
    run, heard = uuid4(), []
    observer = cancelling_observer()(on_cancelling=heard.append)
    observer.add_in_flight_flow_run_id(run)

    async def words() -> AsyncIterator[Event]:
        for seconds in seconds_ago:
            yield Event(
                occurred=datetime.now(UTC) - timedelta(seconds=seconds),
                event="prefect.flow-run.Cancelling",
                resource=Resource({"prefect.resource.id": f"prefect.flow-run.{run}"}),
            )

    observer._events_subscriber = words()
    asyncio.run(observer._consume_events())
    return len(heard)


def test_cancel_since_a_run_began_is_heard() -> None:
    assert told_of_cancels(0) == 1


def test_retry_is_not_ended_by_the_cancel_before_it() -> None:
    """Of which Prefect tells again whoever listens within a minute."""
    assert told_of_cancels(50, 5) == 0


def test_command_of_a_deployment_stays() -> None:
    assert prepared("flows.deployed.train", command="a command") == "a command"
