"""The deployments of infra/deploy/prefect.yaml, at a Prefect server."""

import os
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from infra.errors import JobError
from infra.orchestration.worker import POOL

_SILENT_SECONDS = 120
DEFINITIONS = Path(__file__).parents[1] / "deploy" / "prefect.yaml"


def deploy_all() -> None:
    """Create the work pool, the deployments and their automations at the server of PREFECT_API_URL, or renew them.

    Raises:
        JobError: Prefect refused; the message is its own.
    """
    _create_pool()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEFINITIONS)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobError(f"Prefect refused the deployments of {DEFINITIONS}:\n{(done.stdout + done.stderr)[-2000:]}")


def keep_automations() -> None:
    """Have the server mark a run as crashed whose process was lost without a word, by the heartbeats that it misses."""

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")}
    lost = AutomationCore(
        name="Crash runs whose process is gone",
        description=f"A run that sent heartbeats, and for {_SILENT_SECONDS} s none, has no process any more.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat"} | ends,
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=_SILENT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message="The run's process is gone. A retry goes on with it.")
        ],
    )
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(lost.name):
            client.create_automation(lost)


def _create_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


def run_deployment(name: str, parameters: dict[str, object], run_name: str) -> None:
    """Have a deployment run as soon as a worker is free, unless a run of that name waits or goes on already.

    Args:
        name: `flow/deployment`.
        parameters: of the flow.
        run_name: by which people know it.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.deployments import run_deployment as run

    under_way = {"name": {"any_": [run_name]}, "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
    with get_client(sync_client=True) as client:
        if client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(under_way)):
            return
    run(name, parameters=parameters, timeout=0, flow_run_name=run_name)
