"""Show a flow run's progress in Prefect: artifacts, its workers' log lines, and its cancellation.

A background thread of the flow's process polls the progress board once or twice a second. The load on Prefect's API
therefore depends on the duration of a run, and not on its number of steps or shards.
"""

import contextvars
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar, cast

from infra.cluster.progress_board import LoggedLine, ProgressBoard
from infra.orchestration.server import uses_embedded_server

P = ParamSpec("P")
R = TypeVar("R")

_POLL_SECONDS = 0.5
"""Time between two polls of the board."""
_ARTIFACT_SECONDS = 1.4
"""Minimum time between two updates of a progress artifact. Each is a call of Prefect's API."""
_EMBEDDED_POLL_SECONDS = 1.0
"""Time between two polls with an embedded server. It has no UI, so progress can be updated less often."""
_EMBEDDED_ARTIFACT_SECONDS = 10.0
"""Minimum time between two updates of a progress artifact with an embedded server."""
_LOG_SECONDS = 10.0
"""Time between two log lines about a stage's progress. Prefect's UI refreshes a run's log, but not its artifacts."""
_CANCEL_POLL_SECONDS = 5.0
"""Time between two checks whether the run is being cancelled."""

_reporting = threading.Lock()
"""Held by the outermost flow of this process, which also shows the progress of its subflows."""


def shows_progress(flow_function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a flow function, so that its run shows progress in Prefect."""

    @functools.wraps(flow_function)
    def with_progress(*args: P.args, **kwargs: P.kwargs) -> R:
        with _reported() as reporter:
            try:
                return flow_function(*args, **kwargs)
            except BaseException:
                if reporter is not None and reporter.cancelled:
                    return cast("R", _cancelled_state())
                raise

    return with_progress


@contextmanager
def _reported() -> "Iterator[_Reporter | None]":
    if not _reporting.acquire(blocking=False):
        yield None
        return
    try:
        reporter = _Reporter()
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(reporter.follow,), daemon=True)
        thread.start()
        try:
            yield reporter
        finally:
            reporter.ended.set()
            thread.join(timeout=10)
    finally:
        _reporting.release()


def _cancelled_state() -> Any:
    from prefect.states import Cancelled

    return Cancelled(message="Flow run was cancelled.")


class _Reporter:
    def __init__(self) -> None:
        from prefect import get_run_logger
        from prefect.context import FlowRunContext

        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise RuntimeError("shows_progress needs a flow run. Put @flow above it.")
        embedded = uses_embedded_server()
        self._poll_seconds = _EMBEDDED_POLL_SECONDS if embedded else _POLL_SECONDS
        self._artifact_seconds = _EMBEDDED_ARTIFACT_SECONDS if embedded else _ARTIFACT_SECONDS
        self._flow_run_id = context.flow_run.id
        self._log: Any = get_run_logger()
        self._artifacts: dict[str, Any] = {}
        """Artifact ids, by stage."""
        self._logged_at = self._updated_at = 0.0
        self._stage = ""
        self._shown: dict[str, Any] = {}
        self._pending: dict[str, Any] = {}
        """Latest entry, if its artifact update is not due yet."""
        self._cancelling_since: float | None = None
        self.ended = threading.Event()
        self.cancelled = False
        with suppress(Exception):
            ProgressBoard().clear()  # an earlier flow run of this process may have left an entry

    def follow(self) -> None:
        """Show progress until the flow ends."""
        from prefect.client.orchestration import get_client

        checked = time.monotonic()
        with get_client(sync_client=True) as client:
            while not self.ended.wait(self._poll_seconds):
                # Without the board or the API, the run loses its progress display and continues.
                with suppress(Exception):
                    self._show(client)
                if time.monotonic() - checked > _CANCEL_POLL_SECONDS:
                    checked = time.monotonic()
                    with suppress(Exception):
                        self._check_for_cancel(client)
            with suppress(Exception):
                self._show(client)

    def _show(self, client: Any) -> None:
        entry, lines, lost = ProgressBoard().take()
        for line in lines:
            self._forward(line)
        if lost:
            self._log.warning("%d log lines of workers were dropped, because there were too many.", lost)
        if not entry or entry == self._shown:
            return
        now = time.monotonic()
        is_new_stage = entry["stage"] != self._stage
        if is_new_stage and self._pending:  # otherwise, the artifact of a short stage would keep its first value
            self._update_artifact(client, self._pending)
            self._pending = {}
        self._stage = entry["stage"]
        if is_new_stage or now - self._logged_at > _LOG_SECONDS:
            self._logged_at = now
            self._log.info("%s", entry["text"])
        if entry["share"] is None:
            self._shown = entry
        elif is_new_stage or now - self._updated_at > self._artifact_seconds or self.ended.is_set():
            self._updated_at = now
            self._update_artifact(client, entry)
            self._shown, self._pending = entry, {}
        else:
            self._pending = entry

    def _forward(self, line: LoggedLine) -> None:
        """Log a worker's line, with its own time."""
        logger = self._log.logger
        _, options = self._log.process("", {})
        record = logger.makeRecord(
            logger.name, line.level, __file__, 0, "[%s] %s", (line.source, line.text), None, extra=options["extra"]
        )
        record.created, record.msecs = line.logged_at, 1000 * (line.logged_at % 1)
        if logger.isEnabledFor(line.level):
            logger.handle(record)

    def _update_artifact(self, client: Any, entry: dict[str, Any]) -> None:
        from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

        stage, data, description = entry["stage"], round(100 * entry["share"], 1), entry["text"]
        if stage in self._artifacts:
            client.update_artifact(self._artifacts[stage], ArtifactUpdate(data=data, description=description))
            return
        created = ArtifactCreate(
            key=f"{stage}-progress",
            type="progress",
            data=data,
            description=description,
            flow_run_id=self._flow_run_id,
            task_run_id=entry.get("task_run_id"),
        )
        self._artifacts[stage] = client.create_artifact(created).id

    def _check_for_cancel(self, client: Any) -> None:
        """End a cancelled run that no worker ends: one from the command line, or one whose worker is gone."""
        state = client.read_flow_run(self._flow_run_id).state
        if state is None or not state.is_cancelling():
            self._cancelling_since = None
        elif self._cancelling_since is None:
            self._cancelling_since = time.monotonic()
        elif not self.cancelled:
            self._log.info("The run is cancelled and ends its work.")
            self.cancelled = True
            os.kill(os.getpid(), signal.SIGTERM)  # Prefect turns it into an exception in the main thread
