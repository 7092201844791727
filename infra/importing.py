"""What makes a process that only begins import in less time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uncollected() -> Iterator[None]:
    """Import many modules in the block: looking for garbage among what stays takes a seventh of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def keep_pandas_out() -> None:
    """Have pyarrow not import pandas, which it does to tell a list from a pandas object, and which takes 0.2 s.

    For processes of our own, where there are no such objects: `pyarrow.array` would take one for any sequence, and its
    NaN for a number. Importing pandas by name, and `to_pandas`, go on to work.
    """
    import pyarrow

    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _Without)
        try:
            pyarrow.array([0])  # pyarrow looks once
        finally:
            sys.meta_path.remove(_Without)


class _Without:
    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"{name} is not wanted here", name=name)
