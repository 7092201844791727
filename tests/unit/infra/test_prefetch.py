"""Items are prefetched in order by a thread that ends with the block, and only as many as asked for."""

import threading
import time
from collections.abc import Iterator

import pytest

from infra.prefetch import prefetched


class Numbers:
    """Numbers that count how many of them were produced."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.produced = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            self.produced += 1
            yield number


def failing_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise ValueError("out of numbers")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """No thread outlives a test."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("count", [1, 2, 100])
@pytest.mark.parametrize("length", [0, 1, 1000])
def test_all_items_come_in_order(count: int, length: int):
    with prefetched(range(length), count) as items:
        assert list(items) == list(range(length))


def test_none_is_an_item():
    with prefetched([None, 1, None], 1) as items:
        assert list(items) == [None, 1, None]


def test_producers_error_reaches_the_consumer():
    with pytest.raises(ValueError, match="out of numbers"), prefetched(failing_after(3), 2) as items:
        list(items)


def test_items_before_an_error_come_before_it():
    with prefetched(failing_after(3), 2) as items:
        assert [next(items), next(items), next(items)] == [0, 1, 2]
        with pytest.raises(ValueError, match="out of numbers"):
            next(items)


def test_producers_interrupt_reaches_the_consumer():
    def interrupted() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), prefetched(interrupted(), 1) as items:
        list(items)


def test_producers_error_that_is_not_consumed_ends_the_thread():
    with prefetched(failing_after(0), 1):
        pass


def test_consumer_that_stops_early_ends_the_thread():
    numbers = Numbers(10**9)
    with prefetched(numbers, 2) as items:
        assert next(items) == 0
    produced = numbers.produced
    time.sleep(0.05)
    assert numbers.produced == produced


def test_consumers_error_ends_the_thread_and_is_raised():
    with pytest.raises(KeyError), prefetched(Numbers(10**9), 2):
        raise KeyError


def test_thread_ends_if_nothing_is_consumed():
    with prefetched(Numbers(10**9), 1):
        pass


def test_chain_ends_if_its_consumer_stops_early():
    with prefetched(Numbers(10**9), 1) as items, prefetched(map(str, items), 1) as texts:
        assert next(texts) == "0"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_only_the_requested_number_of_items_is_prefetched(count: int):
    numbers = Numbers(1000)
    with prefetched(numbers, count) as items:
        for consumed in range(20):
            time.sleep(0.01)
            assert numbers.produced <= consumed + count + 1
            next(items)


def test_next_item_is_produced_while_one_is_used():
    second_produced = threading.Event()

    def two() -> Iterator[int]:
        yield 1
        second_produced.set()
        yield 2

    with prefetched(two(), 1) as items:
        next(items)
        assert second_produced.wait(10)
