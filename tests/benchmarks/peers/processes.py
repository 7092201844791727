"""Plain processes that begin at the same moment: the bare loops' way to use all CPUs."""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")


def run_together(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Run `work(*arguments[i], (ready, go, done))` in a process each, and print what they came to.

    Each puts something into the queue `ready` once it is warm, waits for the event `go`, and puts the number of its
    images into the queue `done`.
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
