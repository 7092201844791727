"""Run code that may crash in a child process, so that its death becomes an exception.

A fork would share the parent's threads and locks, and `multiprocessing` imports the parent's main module again, which
in a Ray worker is Ray. So the child is a fresh interpreter.
"""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from infra.errors import JobError

T = TypeVar("T")

_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the other pools reserve much more than they use, which the limit counts
    "OPENBLAS_NUM_THREADS": "1",
}
_START = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import infra.child_process as c; c.serve()"
_READY, _ITEM, _ERROR, _END = range(4)
"""Kinds of messages from the child."""
_PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal to get when the parent ends."""


class ChildDied(Exception):
    """The child process ended before its work did. The text says how: `was killed by SIGSEGV`."""


def iterate_in_child(function: Callable[..., Iterator[T]], *arguments: Any, memory_bytes: int) -> Iterator[T]:
    """Iterate over `function(*arguments)` in a child process. Each item arrives as soon as it is made.

    On Linux, the kernel ends the child rather than another process if memory runs out, and the child can't outlive this
    process. It may run for ever if `function` does.

    Args:
        function: generator function of a module. The child imports only that module. Arguments and items are pickled.
        arguments: its arguments.
        memory_bytes: memory that the child may allocate in addition to what it has after its imports. Beyond that,
            allocations fail. Only Linux enforces it.

    Raises:
        ChildDied: the child ended without finishing.
        JobError: the child could not start.
        Exception: whatever the function raises.
    """
    child = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | _ENVIRONMENT,
    )
    to_child, from_child = cast("BinaryIO", child.stdin), cast("BinaryIO", child.stdout)
    is_ready = False
    try:
        with suppress(BrokenPipeError):  # it died, which reading from it shows
            pickle.dump(sys.path, to_child)
            pickle.dump((function, arguments, memory_bytes, os.getpid()), to_child)
            to_child.flush()
        while (message := _receive(from_child)) is not None:
            kind, value = message
            if kind == _READY:
                is_ready = True
            elif kind == _ITEM:
                yield value
            elif kind == _ERROR:
                raise value
            else:
                return
        ending = _describe(child.wait())
    finally:
        child.kill()
        child.wait()
        for pipe in (to_child, from_child):
            with suppress(BrokenPipeError):
                pipe.close()
    if not is_ready:
        raise JobError(f"The child process of a worker {ending} while it started. See the log of the worker.")
    raise ChildDied(ending)


def _receive(pipe: BinaryIO) -> tuple[int, Any] | None:
    """Return the next message, or None if the child died."""
    try:
        message: tuple[int, Any] = pickle.load(pipe)  # noqa: S301 (the child is our own)
    except (EOFError, pickle.UnpicklingError):  # the latter if the child died while it wrote
        return None
    return message


def _describe(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


def serve() -> None:
    """Run the function that the parent sends, and write what it yields. The child's main function."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the messages

    def send(kind: int, value: Any) -> None:
        pipe.write(pickle.dumps((kind, value)))
        pipe.flush()

    sys.meta_path.insert(0, _WithoutPandas())
    function, arguments, memory_bytes, parent = pickle.load(sys.stdin.buffer)  # noqa: S301 (the parent is our own)
    _end_before_others(parent)
    _limit_memory(memory_bytes)
    send(_READY, None)
    try:
        for item in function(*arguments):
            send(_ITEM, item)
    except Exception as error:  # noqa: BLE001 (the parent raises it)
        send(_ERROR, _picklable(error))
    else:
        send(_END, None)


class _WithoutPandas:
    """Hide pandas from pyarrow, which imports it if it is there. That takes a third of the child's start."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (our own exception)
    except Exception:  # noqa: BLE001 (an exception's class may do anything here)
        return JobError(f"{type(error).__name__}: {error}")
    return error


def _end_before_others(parent: int) -> None:
    """End with the parent, and before other processes if memory runs out. Does nothing on other systems than Linux."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory(more_bytes: int) -> None:
    """Limit private memory. Shared libraries, mapped files and reserved addresses don't count."""
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    [used] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:")]
    limit = int(used.split()[1]) * 1024 + more_bytes
    _, highest = resource.getrlimit(resource.RLIMIT_DATA)
    if highest == resource.RLIM_INFINITY or limit < highest:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, highest))
