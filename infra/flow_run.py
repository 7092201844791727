"""The flow run that this code is part of, as Prefect knows it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID


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
