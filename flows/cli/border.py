"""Report in one sentence what ended a command, unless the cause is a bug of this project."""

import os
import select
import sys
import tempfile
import traceback
from contextlib import suppress

from infra.errors import last_line


def described(error: Exception) -> str:
    """Describe an error that nobody expected, and keep its traceback in a file."""
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        what = f"unexpected {type(error).__name__}: {last_line(error)}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="fmnist-", suffix=".log", delete=False, encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"{what}."
    return f"{what}. The traceback is in {file.name}."


def output_is_closed() -> bool:
    """Return whether the reader of standard output or standard error is gone."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def end_output() -> OSError | None:
    """Write what is still buffered. Return the error if that failed.

    The rest is dropped then, so that Python doesn't complain about it at the exit.
    """
    failed = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            failed = failed or error
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return failed
