"""Start runs as one process each, and cancel them."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.events import Event, Resource
from prefect.settings import PREFECT_LOGGING_LEVEL, get_current_settings, temporary_settings
from prefect.workers.process import ProcessWorker

from infra.orchestration.worker import engine_worker
from infra.upstream.prefect_cancelling_observer import cancelling_observer


def prepared(**configured: Any) -> Any:
    """Return a run's configuration as the worker prepares it."""
    configuration = engine_worker().job_configuration(**configured)
    deployment = DeploymentResponse(name="a-deployment", flow_id=uuid4(), entrypoint="flows.deployed.train")
    configuration.prepare_for_flow_run(FlowRun(flow_id=deployment.flow_id), deployment)
    return configuration


def test_run_starts_as_one_process() -> None:
    configuration = prepared()
    assert configuration.command == f"{sys.executable} -m infra.orchestration.engine"
    assert configuration._command_configured  # otherwise, Prefect would start another process first


def test_command_of_a_deployment_is_kept() -> None:
    assert prepared(command="a command").command == "a command"


def settings_of_a_run(monkeypatch: pytest.MonkeyPatch, **env: str) -> dict[str, str]:
    """Return Prefect's settings when the worker starts a run, which gets them as environment variables."""
    found: dict[str, str] = {}

    async def start(*_: Any) -> None:
        found.update(get_current_settings().to_environment_variables(exclude_unset=True))

    monkeypatch.setattr(ProcessWorker, "run", start)
    worker = engine_worker()(work_pool_name="a-pool")
    asyncio.run(worker.run(FlowRun(flow_id=uuid4()), prepared(env=env)))
    return found


def test_settings_of_a_deployment_override_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_settings({PREFECT_LOGGING_LEVEL: "ERROR"}):
        found = settings_of_a_run(monkeypatch, PREFECT_LOGGING_LEVEL="DEBUG", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")
    assert found["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def cancels_received(*seconds_ago: float) -> int:
    """Return how many Cancel events of these ages reach the run's executor."""
    run, received = uuid4(), []
    observer = cancelling_observer()(on_cancelling=received.append)
    observer.add_in_flight_flow_run_id(run)

    async def events() -> AsyncIterator[Event]:
        for seconds in seconds_ago:
            yield Event(
                occurred=datetime.now(UTC) - timedelta(seconds=seconds),
                event="prefect.flow-run.Cancelling",
                resource=Resource({"prefect.resource.id": f"prefect.flow-run.{run}"}),
            )

    observer._events_subscriber = events()
    asyncio.run(observer._consume_events())
    return len(received)


def test_cancel_after_the_start_of_a_run_is_received() -> None:
    assert cancels_received(0) == 1


def test_retry_survives_an_earlier_cancel() -> None:
    """Prefect sends a new subscriber the events of the last minute."""
    assert cancels_received(50, 5) == 0
