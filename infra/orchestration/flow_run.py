"""The flow run that this code is part of, as Prefect knows it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar, cast
from uuid import UUID

R = TypeVar("R")


@dataclass(frozen=True)
class RootFlowRun:
    """The flow run that was scheduled, triggered or typed; a subflow has its parent's. A retry is the same run."""

    id: UUID
    began: datetime
    """When Prefect first knew of it."""


def root_flow_run() -> RootFlowRun | None:
    """The flow run that this process runs; None outside of one."""
    from prefect import runtime
    from prefect.client.orchestration import get_client

    root = runtime.flow_run.root_flow_run_id
    if root is None:
        return None
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(str(root)))
    return RootFlowRun(found.id, found.created or datetime.now(UTC))


def task_run_id() -> str | None:
    """Id of the task run that this is called in; None outside of one."""
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    return str(context.task_run.id) if context else None


def finished(summary: R, message: str) -> R:
    """What a flow returns in the place of its summary, so that its run's page says in a line what came of it."""
    from prefect.states import Completed

    return cast("R", Completed(message=message, data=summary))
