"""Prefetch the items of an iterator in a background thread."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

_END = object()


@contextmanager
def prefetched(items: Iterable[T], count: int) -> Iterator[Iterator[T]]:
    """Iterate over items in a background thread, so that producing and consuming them overlap.

    The thread ends with the block. The consumer gets any error that the iterable raises.

    Args:
        items: iterable whose items take time to produce.
        count: maximum number of finished items that wait for the consumer. One more may be in production.
    """
    finished: queue.Queue[object] = queue.Queue(count)
    stopped = threading.Event()
    failures: list[BaseException] = []

    def produce() -> None:
        try:
            for item in items:
                finished.put(item)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 (the consumer raises it)
            failures.append(error)
        finished.put(_END)

    def consume() -> Iterator[T]:
        while (item := finished.get()) is not _END:
            yield item  # type: ignore[misc] # everything else is one of the items
        if failures:
            raise failures[0]

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                finished.get(timeout=0.05)
        thread.join()
