"""Items are made ahead of who takes them, few at a time, in their order, and by a thread that ends."""

import threading
import time
from collections.abc import Iterator

import pytest

from infra.prefetch import ahead


class Made:
    """An iterator over numbers that tells how many it has given."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            self.given += 1
            yield number


def failing_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise ValueError("made no more")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """No thread outlives a test."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("count", [1, 2, 100])
@pytest.mark.parametrize("length", [0, 1, 1000])
def test_items_come_in_their_order_and_are_all_there(count: int, length: int):
    with ahead(range(length), count) as items:
        assert list(items) == list(range(length))


def test_none_is_an_item_like_others():
    with ahead([None, 1, None], 1) as items:
        assert list(items) == [None, 1, None]


def test_error_in_the_making_reaches_who_takes():
    with pytest.raises(ValueError, match="made no more"), ahead(failing_after(3), 2) as items:
        list(items)


def test_what_was_made_before_an_error_is_taken_before_it():
    with ahead(failing_after(3), 2) as items:
        assert [next(items), next(items), next(items)] == [0, 1, 2]
        with pytest.raises(ValueError, match="made no more"):
            next(items)


def test_interrupt_in_the_making_reaches_who_takes():
    def interrupted() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ahead(interrupted(), 1) as items:
        list(items)


def test_error_in_the_making_that_nobody_takes_ends_the_thread():
    with ahead(failing_after(0), 1):
        pass


def test_thread_ends_when_who_takes_stops_early():
    made = Made(10**9)
    with ahead(made, 2) as items:
        assert next(items) == 0
    given = made.given
    time.sleep(0.05)
    assert made.given == given


def test_error_of_who_takes_ends_the_thread_and_is_told():
    with pytest.raises(KeyError), ahead(Made(10**9), 2):
        raise KeyError


def test_thread_ends_when_nothing_is_taken():
    with ahead(Made(10**9), 1):
        pass


def test_chain_ends_when_who_takes_stops_early():
    with ahead(Made(10**9), 1) as items, ahead(map(str, items), 1) as texts:
        assert next(texts) == "0"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_more_is_made_ahead_than_was_asked_and_the_one_in_the_making(count: int):
    made = Made(1000)
    with ahead(made, count) as items:
        for taken in range(20):
            time.sleep(0.01)
            assert made.given <= taken + count + 1
            next(items)


def test_next_is_made_while_one_is_used():
    second_made = threading.Event()

    def two() -> Iterator[int]:
        yield 1
        second_made.set()
        yield 2

    with ahead(two(), 1) as items:
        next(items)
        assert second_made.wait(10)
