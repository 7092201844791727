"""Read and complete the current flow run."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar, cast
from uuid import UUID


class Summary(Protocol):
    """What a flow returns."""

    def in_words(self) -> str:
        """Summarize the flow's result in one line."""
        ...


S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class RootFlowRun:
    """The outermost flow run, which its subflows share. A retry keeps it."""

    id: UUID
    created: datetime
    """Time when Prefect created the flow run."""


def root_flow_run() -> RootFlowRun | None:
    """Return the outermost flow run of this process, or None outside of a flow run."""
    from prefect import runtime
    from prefect.client.orchestration import get_client

    root = runtime.flow_run.root_flow_run_id
    if root is None:
        return None
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(str(root)))
    return RootFlowRun(found.id, found.created or datetime.now(UTC))


def retried_since() -> datetime | None:
    """Return when the current flow run first started, if Prefect retries it. None in a first try, or outside of one."""
    from prefect import runtime
    from prefect.client.orchestration import get_client

    if int(runtime.flow_run.run_count or 0) < 2:
        return None
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(str(runtime.flow_run.id))).start_time


def task_run_id() -> str | None:
    """Return the id of the current task run, or None outside of a task run."""
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    return str(context.task_run.id) if context else None


def completed_with(summary: S) -> S:
    """Have a flow return its summary, and show the summary's line as the run's state message in Prefect's UI.

    A flow has to return the result. It is a Prefect state, and Prefect gives the summary in it to the flow's caller.
    """
    from prefect.states import Completed

    return cast("S", Completed(message=summary.in_words(), data=summary))
