"""A lost server, a lost worker, a lost flow process: the work goes on or ends, and can be gone on with."""

import time

from tests.served import Served, until

EMPTY_SECONDS = 15
LEASE_SECONDS = 60
"""For which the turn of a run stays taken whose process could not give it back."""


def test_run_outlives_server_and_worker_and_is_cancelled_without_them(served: Served, re_score: str) -> None:
    run = served.start("train", preset="full")
    until(lambda: served.progress(run, "train") > 1, 120)
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


def test_run_whose_process_is_killed_is_resumed_by_a_retry(served: Served, re_score: str) -> None:
    until(served.has_worker, 20)  # another test may have killed it
    run = served.start("train", preset="full")
    until(lambda: served.progress(run, "train") > 10, 120)
    for process in served.flow_processes():
        process.kill()
    until(lambda: not served.ray_leftovers(), EMPTY_SECONDS)
    assert served.wait(run, seconds=60) == "Crashed"
    # The worker says so, too, two seconds later, and would say so of a retry that is quicker.
    until(lambda: "Check whether the flow run" in served.messages(run), 60)
    before = served.messages(run)
    served.set_state(run, "SCHEDULED", "AwaitingRetry")
    until(lambda: served.messages(run).count("Rank 0 of 2 trains") == 2, LEASE_SECONDS + 90)
    again = until(lambda: served.messages(run).removeprefix(before).partition("[rank 0] Epoch ")[2], 60)
    assert int(again.split()[0]) > 3  # it went on, and did not begin anew
    served.set_state(run, "CANCELLING", "Cancelling")
    assert served.wait(run, seconds=EMPTY_SECONDS) == "Cancelled"
