"""Stub until the real one is merged."""

from contextlib import contextmanager


@contextmanager
def explained_delta(store):
    yield
