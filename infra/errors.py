"""Errors that say whose turn it is: the person who asked, or the one who runs the system."""


class RequestError(ValueError):
    """What was asked for can't be done as asked: the message names the thing, what is wrong with it, what to do.

    The command line prints the message alone and exits with 2.
    """


class JobError(RuntimeError):
    """The request was right, but the work failed. The command line prints the message alone and exits with 1."""


class JobStopped(JobError):
    """The work was given up for a reason that trying it again would meet once more."""
