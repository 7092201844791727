"""Create this project's deployments and automations on a Prefect server, and run deployments."""

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from infra.errors import JobError
from infra.orchestration.worker import POOL
from infra.packages import ROOT, child_environment

_SILENT_SECONDS = 120
"""Time without a heartbeat after which a run counts as crashed."""
DEFINITIONS = Path(__file__).parents[1] / "deploy" / "prefect.yaml"


def deploy_all() -> None:
    """Create the work pool, and create or update the deployments, on the server at PREFECT_API_URL.

    Raises:
        JobError: Prefect refused a deployment. The message contains its output.
    """
    _create_pool()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEFINITIONS)]
    # Prefect imports the flows with the current folder first on `sys.path`. It may hold modules of the same names.
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobError(f"Prefect refused the deployments of {DEFINITIONS}:\n{(done.stdout + done.stderr)[-2000:]}")


def create_automations() -> None:
    """Create the automation that marks runs as crashed if their heartbeats stop, unless it exists.

    If a run's process and its worker are killed together, nobody reports the crash.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")}
    lost = AutomationCore(
        name="Crash runs whose process is gone",
        description=f"Marks a run as crashed if it has sent no heartbeat for {_SILENT_SECONDS} s.",
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
            ChangeFlowRunState(
                state=StateType.CRASHED, message="The run's process is gone. Retry the run to resume it."
            )
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
    """Start a run of a deployment, unless a run of this name is scheduled or in progress.

    Args:
        name: deployment as `flow/deployment`.
        parameters: parameters of the flow.
        run_name: name of the run.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.deployments import run_deployment as run

    unfinished = {"name": {"any_": [run_name]}, "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
    with get_client(sync_client=True) as client:
        if client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(unfinished)):
            return
    run(name, parameters=parameters, timeout=0, flow_run_name=run_name)
