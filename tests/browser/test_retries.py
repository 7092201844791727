"""Runs whose processes were killed, some minutes ago by now: they are crashed, and a retry goes on with them."""

from tests.browser.conftest import EMPTY_SECONDS, LostRuns
from tests.served import Served
from tests.waiting import PATIENCE_SECONDS, until

SILENT_SECONDS = 120
"""Without a heartbeat, after which a run is held for lost."""


def test_run_that_nobody_saw_die_is_crashed_and_resumed_by_a_retry(served: Served, lost_runs: LostRuns) -> None:
    run = lost_runs.unseen
    assert served.wait(run, seconds=SILENT_SECONDS + PATIENCE_SECONDS) == "Crashed"
    assert served.run(run)["state"]["message"] == "The run's process is gone. A retry goes on with it."
    before = served.messages(run)
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    again = until(lambda: served.messages(run).removeprefix(before).partition("[rank 0] Epoch ")[2])
    assert int(again.split()[0]) > 3  # it went on, and did not begin anew
    served.set_state(run, "CANCELLING", "Cancelling")
    assert served.wait(run, seconds=EMPTY_SECONDS) == "Cancelled"


def test_run_that_its_worker_saw_die_is_completed_by_a_retry(served: Served, lost_runs: LostRuns) -> None:
    run = lost_runs.seen
    # The worker says twice that it has crashed, and would say so of a retry that is quicker.
    until(lambda: "Check whether the flow run" in served.messages(run))
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: served.state(run) == "Completed")
    assert "10,000 images" in served.run(run)["state"]["message"]
