"""Run plain processes that start at the same moment, so that the bare loops use all CPUs."""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")


def run_together(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Run `work(*arguments[i], (ready, go, done))` in one process per item, and print the combined result.

    Each process puts an item into the queue `ready` once it is warm. It then waits for the event `go`, and finally puts
    the number of its images into the queue `done`.
    """
    ready, done, go = CONTEXT.Queue(), CONTEXT.Queue(), CONTEXT.Event()
    workers = [CONTEXT.Process(target=work, args=(*own, (ready, go, done))) for own in arguments]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.get(timeout=120)
    began = time.perf_counter()
    go.set()
    images = sum(done.get(timeout=3600) for _ in workers)
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    print(json.dumps({"images": images, "seconds": seconds, "images_per_second": images / seconds}))
