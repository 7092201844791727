"""Errors, divided by who can fix them: the person who made the request, or the one who runs the system."""


class RequestError(ValueError):
    """The request or a setting is wrong. A retry would fail the same way.

    The message names the thing, what is wrong with it and what to do. The command line prints it and exits with 2.
    """


class JobError(RuntimeError):
    """The request was right, but the work failed. A retry may succeed.

    The command line prints the message and exits with 1.
    """


class JobStopped(JobError):
    """The work failed for a reason that a retry would meet again."""


def last_line(error: Exception) -> str:
    """Return the last line of an error's message, without the full stop. Some messages contain a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
