"""Run an iterator in a thread of its own, some items ahead of who takes them."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

_END = object()


@contextmanager
def ahead(items: Iterable[T], count: int) -> Iterator[Iterator[T]]:
    """Take items in a thread, so that making the next ones and using these go on at once.

    Args:
        items: whatever takes its time; what it raises, the consumer gets.
        count: items made and not taken, at most, besides the one in the making.
    """
    made: queue.Queue[object] = queue.Queue(count)
    stopped = threading.Event()
    failures: list[BaseException] = []

    def make() -> None:
        try:
            for item in items:
                made.put(item)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 (the consumer raises it)
            failures.append(error)
        made.put(_END)

    def taken() -> Iterator[T]:
        while (item := made.get()) is not _END:
            yield item  # type: ignore[misc] # anything else is one of the items
        if failures:
            raise failures[0]

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                made.get(timeout=0.05)
        thread.join()
