"""Cancel runs at random moments. They must leave nothing on the cluster, and a retry must complete their work."""

import random
import time
from typing import Any

from tests.harness.served import FINAL, Served, until

EMPTY_SECONDS = 15


def test_cancelled_run_leaves_ray_empty_and_delays_no_other_run(
    served: Served, re_score: str, cancel_seed: int
) -> None:
    draw = random.Random(cancel_seed)
    name = draw.choice(["train", "classify"])
    run = running_at_a_random_moment(name, draw, served, cancel_seed)
    served.set_state(run, "CANCELLING", "Cancelling")
    began = time.monotonic()
    until(lambda: not served.ray_leftovers() and not served.flow_processes(), EMPTY_SECONDS)
    empty = time.monotonic() - began
    state = served.wait(run, seconds=EMPTY_SECONDS - empty)
    print(f"seed {cancel_seed}: {name} {state}, Ray empty after {empty:.1f} s")
    assert state == "Cancelled"
    if name == "classify":
        served.set_state(run, "SCHEDULED", "AwaitingRetry")
        until(lambda: served.state(run) == "Completed", 60)
        assert "10,000 images" in served.run(run)["state"]["message"]


def running_at_a_random_moment(name: str, draw: random.Random, served: Served, seed: int) -> str:
    """Start runs until one is still running at a random moment, and return it."""
    for attempt in range(10):
        parameters: dict[str, Any] = (
            {"preset": "full"}
            if name == "train"
            else {"table": f"cancelled-{seed}-{attempt}", "resources": {"worker_cpus": 0.5}}
        )
        run = served.start(name, **parameters)
        assert served.wait(run, "Running") == "Running"
        time.sleep(draw.uniform(0, 25 if name == "train" else 8))
        if (state := served.state(run)) not in FINAL:
            return run
        print(f"seed {seed}: {name} was {state} before it could be cancelled, retrying")
    raise AssertionError(f"seed {seed}: {name} always ends before it can be cancelled")


def test_run_cancelled_while_its_process_starts_leaves_ray_empty(
    served: Served, re_score: str, cancel_seed: int
) -> None:
    """Cancel before the flow starts. The process may have connected to Ray by then."""
    draw = random.Random(cancel_seed)
    name = draw.choice(["train", "classify"])
    run = served.start(name, **({} if name == "train" else {"table": f"cancelled-early-{cancel_seed}"}))
    until(served.flow_processes, 60)
    time.sleep(draw.uniform(0, 2))
    served.set_state(run, "CANCELLING", "Cancelling")
    began = time.monotonic()
    until(lambda: not served.ray_leftovers() and not served.flow_processes(), EMPTY_SECONDS)
    empty = time.monotonic() - began
    assert served.wait(run) == "Cancelled"
    print(f"seed {cancel_seed}: {name} cancelled at its start, Ray empty after {empty:.1f} s")


def test_run_cancelled_while_its_workers_start_leaves_ray_empty(served: Served, re_score: str) -> None:
    run = served.start("train", preset="full")
    # The cleaner outlives the run's own processes, to remove the placement group.
    until(lambda: any("Cleaner" in title for title in served.ray_work()), 60)
    served.set_state(run, "CANCELLING", "Cancelling")
    until(lambda: not served.ray_leftovers() and not served.flow_processes(), EMPTY_SECONDS)
    assert served.wait(run) == "Cancelled"
