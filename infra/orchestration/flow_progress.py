"""What a flow run shows while it works: one progress artifact, what its workers log, and that it is being cancelled.

A thread of the flow's process looks at the progress board once or twice a second, so that what it costs Prefect's API
depends on the time that a run takes, and not on how many steps or shards it has.
"""

import contextvars
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar, cast

from infra.cluster.progress_board import LoggedLine, ProgressBoard
from infra.orchestration.server import is_for_this_run_alone

P = ParamSpec("P")
R = TypeVar("R")

_LOOK_SECONDS = 0.5
_ARTIFACT_SECONDS = 1.4
"""Between two updates of a progress artifact; each is a call of Prefect's API."""
_UNSEEN_LOOK_SECONDS = 1.0
_UNSEEN_ARTIFACT_SECONDS = 10.0
"""The same where Prefect's API is the run's own, and has no pages."""
_LOG_SECONDS = 10.0
"""Between two lines in the log that say how far a stage is: of a run's page, the log is what renews itself."""
_CANCEL_LOOK_SECONDS = 5.0

_reporting = threading.Lock()
"""Held by the outermost flow of this process: what its subflows do is shown there."""


def shows_progress(flow_function: Callable[P, R]) -> Callable[P, R]:
    """Show, for the length of a flow, how far its work is."""

    @functools.wraps(flow_function)
    def with_report(*args: P.args, **kwargs: P.kwargs) -> R:
        with _reported() as reporter:
            try:
                return flow_function(*args, **kwargs)
            except BaseException:
                if reporter is not None and reporter.cancelled:
                    return cast("R", _cancelled_state())
                raise

    return with_report


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
            raise RuntimeError("What is reported is a flow run; this is none.")
        unseen = is_for_this_run_alone()
        self._look_seconds = _UNSEEN_LOOK_SECONDS if unseen else _LOOK_SECONDS
        self._artifact_seconds = _UNSEEN_ARTIFACT_SECONDS if unseen else _ARTIFACT_SECONDS
        self._flow_run_id = context.flow_run.id
        self._log: Any = get_run_logger()
        self._artifacts: dict[str, Any] = {}
        """Ids, by stage."""
        self._logged = self._drawn = 0.0
        self._stage = ""
        self._shown: dict[str, Any] = {}
        self._undrawn: dict[str, Any] = {}
        """What was seen last, where its artifact is not due yet."""
        self._cancelling_since: float | None = None
        self.ended = threading.Event()
        self.cancelled = False
        with suppress(Exception):
            ProgressBoard().clear()  # of what an earlier flow run of this process left

    def follow(self) -> None:
        """Look, and show, until the flow ends."""
        from prefect.client.orchestration import get_client

        looked = time.monotonic()
        with get_client(sync_client=True) as client:
            while not self.ended.wait(self._look_seconds):
                # What is shown is worth less than what is done: without the board or the API, the work goes on.
                with suppress(Exception):
                    self._show(client)
                if time.monotonic() - looked > _CANCEL_LOOK_SECONDS:
                    looked = time.monotonic()
                    with suppress(Exception):
                        self._look_for_cancel(client)
            with suppress(Exception):
                self._show(client)

    def _show(self, client: Any) -> None:
        entry, lines, lost = ProgressBoard().take()
        for line in lines:
            self._forward(line)
        if lost:
            self._log.warning("%d lines that workers logged were too many to be shown.", lost)
        if not entry or entry == self._shown:
            return
        now = time.monotonic()
        begins = entry["stage"] != self._stage
        if begins and self._undrawn:  # or a short stage would end as it began
            self._show_artifact(client, self._undrawn)
            self._undrawn = {}
        self._stage = entry["stage"]
        if begins or now - self._logged > _LOG_SECONDS:
            self._logged = now
            self._log.info("%s", entry["text"])
        if entry["share"] is None:
            self._shown = entry
        elif begins or now - self._drawn > self._artifact_seconds or self.ended.is_set():
            self._drawn = now
            self._show_artifact(client, entry)
            self._shown, self._undrawn = entry, {}
        else:
            self._undrawn = entry

    def _forward(self, line: LoggedLine) -> None:
        """Log what a worker logged, as of the time when it did."""
        logger = self._log.logger
        _, options = self._log.process("", {})
        record = logger.makeRecord(
            logger.name, line.level, __file__, 0, "[%s] %s", (line.where, line.text), None, extra=options["extra"]
        )
        record.created, record.msecs = line.at, 1000 * (line.at % 1)
        if logger.isEnabledFor(line.level):
            logger.handle(record)

    def _show_artifact(self, client: Any, entry: dict[str, Any]) -> None:
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

    def _look_for_cancel(self, client: Any) -> None:
        """End a run that is to be cancelled and that no worker ends: it was typed, or its worker is gone."""
        state = client.read_flow_run(self._flow_run_id).state
        if state is None or not state.is_cancelling():
            self._cancelling_since = None
        elif self._cancelling_since is None:
            self._cancelling_since = time.monotonic()
        elif not self.cancelled:
            self._log.log(logging.INFO, "Cancelled: ending the work.")
            self.cancelled = True
            os.kill(os.getpid(), signal.SIGTERM)  # Prefect turns it into an exception in the main thread
