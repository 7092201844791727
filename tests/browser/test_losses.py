"""A lost server, a lost worker, a lost flow process: the work goes on or ends, and can be gone on with."""

import time

import pytest

from tests.harness.served import Served, until

EMPTY_SECONDS = 15
SILENT_SECONDS = 120
"""Without a heartbeat, after which a run is held for lost."""
LEASE_SECONDS = 60
"""For which the turn of a run stays taken whose process could not give it back."""


def test_run_outlives_server_and_worker_and_is_cancelled_without_them(served: Served, re_score: str) -> None:
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


@pytest.mark.timeout(720)
def test_run_whose_process_is_killed_is_crashed_and_resumed_by_a_retry(served: Served, re_score: str) -> None:
    until(served.has_worker, 20)  # another test may have killed it
    run = served.start("train", preset="full")
    served.wait_for_progress(run, "train", beyond=10)
    served.worker().kill()  # or it would say at once that the run has crashed
    kill_process_of(run, served)
    assert served.wait(run, seconds=SILENT_SECONDS + 60) == "Crashed"
    assert served.run(run)["state"]["message"] == "The run's process is gone. A retry goes on with it."

    before = served.messages(run)
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: served.messages(run).count("Rank 0 of 2 trains") == 2, LEASE_SECONDS + 90)
    again = until(lambda: served.messages(run).removeprefix(before).partition("[rank 0] Epoch ")[2], 60)
    assert int(again.split()[0]) > 3  # it went on, and did not begin anew

    kill_process_of(run, served)
    assert served.wait(run, seconds=60) == "Crashed"  # as the worker says, which is there again
    # It says so once more, two seconds later, and would say so of a retry that is quicker.
    until(lambda: "Check whether the flow run" in served.messages(run), 60)
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: served.messages(run).count("Rank 0 of 2 trains") == 3, LEASE_SECONDS + 90)
    served.set_state(run, "CANCELLING", "Cancelling")
    assert served.wait(run, seconds=EMPTY_SECONDS) == "Cancelled"


def kill_process_of(run: str, served: Served) -> None:
    """Kill the only flow run's process, and see that Ray ends what it did."""
    [process] = served.flow_processes()
    assert served.state(run) == "Running"
    process.kill()
    until(lambda: not served.ray_leftovers(), EMPTY_SECONDS)
