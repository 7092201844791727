"""Ignore the Cancel of an earlier try when a run is retried.

Changes:   the name `FlowRunCancellingObserver` in `prefect.runner._flow_run_executor`, in Prefect 3.8.
Why:       a run's observer also receives the events of the last minute. If a run is retried within a minute of its
           Cancel, the retry receives that Cancel again and ends.
Gain:      a bug fix: a cancelled run can be retried at once.
Upstream:  no issue found in PrefectHQ/prefect. Seen with 3.8.8. Pull request 20022 added the observer's filter.
Remove:    when the observer compares an event's time with the time of the run's newest state.
If gone:   the test fails. The worker starts and logs one line.
Test:      tests/unit/infra/orchestration/test_worker.py, tests/browser/test_cancels.py
"""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

TARGETS = (
    "prefect.runner._flow_run_executor:FlowRunCancellingObserver",
    "prefect._internal.observers:FlowRunCancellingObserver._consume_events",
)
"""The private names that this patch needs."""

_MARGIN = timedelta(seconds=2)
"""Time from reading a run's state until the observer listens. Nobody cancels and retries a run in less time."""

_log = logging.getLogger(__name__)


def ignore_earlier_cancels() -> None:
    """Have the runs that this process starts ignore Cancels from before their start."""
    try:
        from prefect.runner import _flow_run_executor

        _flow_run_executor.FlowRunCancellingObserver = cancelling_observer()  # type: ignore[attr-defined]
    except (ImportError, AttributeError) as error:
        _log.warning("A run that is retried within a minute of its Cancel may be cancelled again: %s", error)


def cancelling_observer() -> Any:
    """Return an observer class that skips events from before its own start."""
    from prefect._internal.observers import FlowRunCancellingObserver

    class CancellingObserver(FlowRunCancellingObserver):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._not_before = datetime.now(UTC) - _MARGIN

        async def _consume_events(self) -> None:
            if (events := self._events_subscriber) is not None:
                self._events_subscriber = (  # type: ignore[assignment]
                    event async for event in events if event.occurred >= self._not_before
                )
            await super()._consume_events()  # type: ignore[no-untyped-call]

    return CancellingObserver
