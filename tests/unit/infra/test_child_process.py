"""What kills a child process becomes an exception in its parent."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.child_process import ChildDied, iterate_in_child
from infra.errors import RequestError
from tests.harness.commands import wait_until_gone

MIB = 2**20


def in_child(function: Callable[..., Iterator[int]], *arguments: object, memory_mib: int = 200) -> Iterator[int]:
    return iterate_in_child(function, *arguments, memory_bytes=memory_mib * MIB)


def count_and(end: Callable[..., object], *arguments: object) -> Iterator[int]:
    """Count to two, then call a function."""
    yield 1
    yield 2
    end(*arguments)


def allocate(mebibytes: int) -> Iterator[int]:
    yield len(bytes(mebibytes * MIB)) // MIB


def process_ids() -> Iterator[int]:
    while True:
        yield os.getpid()


def oom_score() -> Iterator[int]:
    yield int(Path("/proc/self/oom_score_adj").read_text())


def imported() -> Iterator[bool]:
    yield from (name in sys.modules for name in ("ray", "torch", "prefect"))


def print_between() -> Iterator[int]:
    yield 1
    os.write(1, b"printed by a library")
    yield 2


def test_items_arrive_in_order() -> None:
    assert list(in_child(range, 5)) == [0, 1, 2, 3, 4]  # type: ignore[arg-type]


def test_printed_text_does_not_mix_with_the_items() -> None:
    assert list(in_child(print_between)) == [1, 2]


def test_exception_keeps_its_class_and_text() -> None:
    with pytest.raises(RequestError, match=r"^no credentials$"):
        list(in_child(fail_with, RequestError("no credentials")))


def fail_with(error: Exception) -> Iterator[int]:
    raise error
    yield


@pytest.mark.parametrize(
    ("end", "argument", "how"),
    [
        (ctypes.string_at, 0, "SIGSEGV"),
        (os._exit, 0, "exit code 0"),
        (os._exit, 3, "exit code 3"),
        (signal.raise_signal, signal.SIGKILL, "SIGKILL"),
    ],
)
def test_death_is_reported_after_the_items_before_it(end: Callable[..., object], argument: int, how: str) -> None:
    items = in_child(count_and, end, argument)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ChildDied, match=how):
        next(items)


def test_child_may_allocate_up_to_its_limit() -> None:
    assert list(in_child(allocate, 150)) == [150]


def test_allocation_beyond_the_limit_fails_in_the_child() -> None:
    with pytest.raises(MemoryError):
        list(in_child(allocate, 250))


def test_child_dies_first_if_memory_runs_out() -> None:
    assert list(in_child(oom_score)) == [1000]


def test_child_imports_only_what_its_function_needs() -> None:
    assert list(in_child(imported)) == [False, False, False]


def test_abandoned_child_is_gone() -> None:
    items = in_child(process_ids)
    child = psutil.Process(next(items))
    items.close()  # type: ignore[attr-defined]
    assert wait_until_gone([child], 5) == []


def test_child_of_a_killed_parent_is_gone() -> None:
    program = (
        "import time; from tests.unit.infra.test_child_process import *; items = in_child(process_ids); "
        "print(next(items), flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert wait_until_gone([child], 5) == []


def test_modules_of_the_current_folder_do_not_shadow_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert list(in_child(range, 2)) == [0, 1]  # type: ignore[arg-type]
