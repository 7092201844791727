"""A lost server, a lost worker, a lost flow process: the work goes on or ends. See test_retries.py for what is left."""

import time

from tests.browser.conftest import EMPTY_SECONDS, LostRuns
from tests.served import Served
from tests.waiting import until


def test_run_outlives_server_and_worker_and_is_cancelled_without_them(served: Served, re_score: str) -> None:
    run = served.start("train", preset="full")
    served.wait_for_progress(run, "train", beyond=1)
    served.server().kill()
    at_kill = served.progress(run, "train")  # answered by the server that takes its place
    served.wait_for_progress(run, "train", beyond=at_kill)
    worker = served.worker()
    worker.kill()
    worker.wait()
    assert served.state(run) == "Running"
    served.set_state(run, "CANCELLING", "Cancelling")
    began = time.monotonic()
    until(lambda: not served.ray_leftovers(), EMPTY_SECONDS)
    assert served.wait(run, seconds=EMPTY_SECONDS - (time.monotonic() - began)) == "Cancelled"
    until(lambda: not served.flow_processes(), EMPTY_SECONDS)


def test_killed_process_is_reported_by_its_worker_at_once(served: Served, lost_runs: LostRuns) -> None:
    assert served.wait(lost_runs.seen) == "Crashed"
    assert served.state(lost_runs.unseen) == "Running"  # so far
