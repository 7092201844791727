"""Runs that are cancelled at random moments leave nothing on the cluster, and what they did is gone on with."""

import random
import time
from typing import Any

from tests.harness.served import FINAL, Served, until

EMPTY_SECONDS = 15


def test_cancelled_run_leaves_ray_empty_and_the_next_one_is_not_held_up(
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
    """A run under way; one that is done before the moment comes is followed by another."""
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
        print(f"seed {seed}: {name} was {state} before it could be cancelled; once more")
    raise AssertionError(f"seed {seed}: {name} is always done before it can be cancelled")


def test_run_cancelled_while_its_process_begins_leaves_ray_empty(
    served: Served, re_score: str, cancel_seed: int
) -> None:
    """It may have joined Ray by then, and its flow has not begun."""
    draw = random.Random(cancel_seed)
    name = draw.choice(["train", "classify"])
    run = served.start(name, **({} if name == "train" else {"table": f"cancelled-early-{cancel_seed}"}))
    until(served.flow_processes, 30)
    time.sleep(draw.uniform(0, 2))
    served.set_state(run, "CANCELLING", "Cancelling")
    began = time.monotonic()
    until(lambda: not served.ray_leftovers() and not served.flow_processes(), EMPTY_SECONDS)
    empty = time.monotonic() - began
    assert served.wait(run) == "Cancelled"
    print(f"seed {cancel_seed}: {name} cancelled as it began, Ray empty after {empty:.1f} s")


def test_run_cancelled_while_its_workers_start_leaves_ray_empty(served: Served, re_score: str) -> None:
    run = served.start("train", preset="full")
    # It outlives the run's own processes, to remove the placement group.
    until(lambda: any("Cleaner" in title for title in served.ray_work()), 60)
    served.set_state(run, "CANCELLING", "Cancelling")
    until(lambda: not served.ray_leftovers() and not served.flow_processes(), EMPTY_SECONDS)
    assert served.wait(run) == "Cancelled"
