"""Tell failures of one input file from those of its store."""

from typing import Any

from fmnist_model.errors import InvalidDataset, describe_unexpected
from infra.errors import JobError, RequestError
from infra.storage.input_files import InputsUnavailable, InputUnreadable
from infra.storage.input_files.interface import MACHINE_FAILURES


def first_cause(error: Exception, files: tuple[Any, ...]) -> Exception:
    """Return the error that a file's store raised, which pyarrow may have turned into one of its own."""
    failures = (getattr(file, "failure", None) for file in files)
    return next((failure for failure in failures if failure is not None), error)


def reason_of(error: Exception, uri: str) -> str:
    """Describe why a file can't be read, as a reason for quarantine.

    Raises:
        RequestError, JobError: the store, the account or this machine is to blame. The shard fails and is retried.
    """
    match error:
        case RequestError() | JobError():
            if uri not in str(error):
                error.add_note(f"It was reading {uri}.")
            raise error
        case OSError() if isinstance(error, ConnectionError | TimeoutError) or error.errno in MACHINE_FAILURES:
            raise InputsUnavailable(f"{uri} can't be read: {error}.") from error
        case OSError(errno=int(), strerror=problem):
            return f"unreadable: {problem}"
        case InputUnreadable():
            return str(error)
        case InvalidDataset():
            return f"damaged: {str(error).removeprefix(f'{uri}: ')}"
        case _:
            return describe_unexpected(error)
