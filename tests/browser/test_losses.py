"""Kill the server, the worker or a flow's process. The work must continue, or end and be resumed by a retry."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.harness.served import Served, until

EMPTY_SECONDS = 15
SILENT_SECONDS = 120
"""Time without a heartbeat after which the server takes a run for lost."""
SHORT_SILENT_SECONDS = 45
"""The same for the tests. It is longer than the 30 s between two heartbeats."""
LEASE_SECONDS = 60
"""Time for which a killed run keeps others from training."""


def test_run_outlives_server_and_worker_and_can_be_cancelled_without_them(served: Served, re_score: str) -> None:
    run = served.start("train", preset="full")
    served.wait_for_progress(run, "train", beyond=1)
    served.server().kill()
    at_kill = served.progress(run, "train")  # answered by the server that takes its place
    until(lambda: served.progress(run, "train") > at_kill, 60)
    worker = served.worker()
    worker.kill()
    worker.wait()
    assert served.state(run) == "Running"
    served.set_state(run, "CANCELLING", "Cancelling")
    began = time.monotonic()
    until(lambda: not served.ray_leftovers(), EMPTY_SECONDS)
    assert served.wait(run, seconds=EMPTY_SECONDS - (time.monotonic() - began)) == "Cancelled"
    until(lambda: not served.flow_processes(), EMPTY_SECONDS)


def test_lost_runs_are_found_by_the_heartbeats_that_they_miss(served: Served) -> None:
    assert heartbeat_automation(served)["trigger"]["within"] == SILENT_SECONDS


@pytest.mark.timeout(720)
def test_run_whose_process_is_killed_is_crashed_and_resumed_by_a_retry(served: Served, re_score: str) -> None:
    until(served.has_worker, 60)  # another test may have killed it
    with short_silence(served) as automation:
        run = served.start("train", preset="full")
        served.wait_for_progress(run, "train", beyond=10)
        served.worker().kill()  # otherwise it would report the crash at once
        kill_process_of(run, served)
        assert served.wait(run, seconds=SHORT_SILENT_SECONDS + 60) == "Crashed"
    assert served.run(run)["state"]["message"] == automation["actions"][0]["message"]

    before = served.messages(run)
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: served.messages(run).count("Rank 0 of 2 trains") == 2, LEASE_SECONDS + 90)
    again = until(lambda: served.messages(run).removeprefix(before).partition("[rank 0] Epoch ")[2], 60)
    assert int(again.split()[0]) > 3  # the run resumed instead of starting over

    kill_process_of(run, served)
    assert served.wait(run, seconds=60) == "Crashed"  # the worker is back, and reports the crash
    # The worker reports it again two seconds later. That report would crash a retry that comes earlier.
    until(lambda: "Check whether the flow run" in served.messages(run), 60)
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: served.messages(run).count("Rank 0 of 2 trains") == 3, LEASE_SECONDS + 90)
    served.set_state(run, "CANCELLING", "Cancelling")
    assert served.wait(run, seconds=EMPTY_SECONDS) == "Cancelled"


def kill_process_of(run: str, served: Served) -> None:
    """Kill the only flow run's process, and check that Ray ends its work."""
    [process] = served.flow_processes()
    assert served.state(run) == "Running"
    process.kill()
    until(lambda: not served.ray_leftovers(), EMPTY_SECONDS)


def heartbeat_automation(served: Served) -> dict[str, Any]:
    """Return the automation that marks a run as crashed when its heartbeats stop."""
    automations = served.post("/automations/filter", {})
    [found] = [one for one in automations if one["trigger"].get("after") == ["prefect.flow-run.heartbeat"]]
    return dict(found)


@contextmanager
def short_silence(served: Served) -> Iterator[dict[str, Any]]:
    """Have the server take a run for lost sooner than usual, and yield the automation."""
    automation = heartbeat_automation(served)
    path = f"/automations/{automation['id']}"
    fields = {name: automation[name] for name in ("name", "description", "enabled", "trigger", "actions")}
    short = fields | {"trigger": automation["trigger"] | {"within": SHORT_SILENT_SECONDS}}
    assert served.api.put(path, json=short).is_success
    try:
        yield automation
    finally:
        assert served.api.put(path, json=fields).is_success
