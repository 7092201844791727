"""The errors of delta-rs, in the words of the store.

delta-rs has its own clients for S3 and for files. Their errors reach Python as text of many lines, in one of several
classes. The text holds the server's answer or the operating system's error number, from which the store can tell what
is wrong.
"""

import html
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from infra.errors import JobError, RequestError
from infra.storage.object_store.interface import ObjectStore

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_COLORS = re.compile(r"\x1b\[[0-9;]*m↳?")
_STATUS = re.compile(r"status code:? (\d{3})")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_OPERATION = re.compile(r"Error performing ([A-Z]+) ")
_ERRNO = re.compile(r"\(os error (\d+)\)|\bOs \{ code: (\d+)")
_MISSING = re.compile(r"Object at location (.+?) not found")

_REDIRECTED = "Received redirect"
_TIMED_OUT = re.compile(r"timed out")
_NO_TLS = re.compile(r"client error \(Connect\).*(certificate|InvalidContentType|HandshakeFailure)")
_NO_CONNECTION = re.compile(r"client error \(Connect\)|tcp connect error|dns error")
_BROKEN_CONNECTION = re.compile(r"HTTP error|error sending request|error decoding response body|connection closed")


@contextmanager
def explained_delta(store: ObjectStore) -> Iterator[None]:
    """Turn an error of delta-rs that the store caused into the store's own error.

    A commit whose answer is lost may have succeeded. Then delta-rs raises `CommitFailedError`, because its second
    attempt found its own first one, or this raises `StoreUnavailable`. So look for the transaction after either.

    Raises:
        StoreMisconfigured: wrong credentials, no such bucket, no permission, …
        StoreUnavailable: the store is down, full or failing.
        ObjectNotFound: a file that the table names is missing.
        deltalake.exceptions.CommitFailedError: another commit came first. Passed through, as is every other error.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        yield
    except (CommitFailedError, RequestError, JobError):
        raise
    except Exception as error:
        comes_from_delta = isinstance(error, DeltaError) or type(error) is Exception or _has_no_number(error)
        failure = store.delta_failure(error) if comes_from_delta else None
        if failure is None:
            raise
    else:
        return
    # Without the cause, whose many lines would end up in the log.
    raise failure from None


def text_of(error: Exception) -> str:
    """Return the text of an error of delta-rs in one line, without colors."""
    return " ".join(_COLORS.sub(" ", str(error)).split())


def missing_file_in(text: str) -> str | None:
    """Return the path of the file that an error of delta-rs says is missing, or None if it says something else."""
    found = _MISSING.search(text)
    return found[1] if found else None


def os_error_in(text: str) -> OSError | None:
    """Return the operating system's error that the text of an error of delta-rs quotes."""
    found = _ERRNO.search(text)
    if not found:
        return None
    number = int(found[1] or found[2])
    return OSError(number, os.strerror(number))


def s3_error_in(text: str, endpoint: str) -> "BotoCoreError | ClientError | None":
    """Return the SDK's error for the answer or the failed connection that the text of an error of delta-rs quotes."""
    from botocore import exceptions

    if (status := _STATUS.search(text)) or _REDIRECTED in text:
        return _server_error(text, int(status[1]) if status else 301)
    kinds: list[tuple[re.Pattern[str], BotoCoreError]] = [
        (_TIMED_OUT, exceptions.ReadTimeoutError(endpoint_url=endpoint)),
        (_NO_TLS, exceptions.SSLError(endpoint_url=endpoint, error=OSError())),
        (_NO_CONNECTION, exceptions.EndpointConnectionError(endpoint_url=endpoint)),
        (_BROKEN_CONNECTION, exceptions.HTTPClientError(error=OSError())),
    ]
    return next((error for pattern, error in kinds if pattern.search(text)), None)


def _server_error(text: str, status: int) -> "ClientError":
    from botocore.exceptions import ClientError

    code, message, operation = _CODE.search(text), _MESSAGE.search(text), _OPERATION.search(text)
    return ClientError(
        {
            "Error": {
                "Code": html.unescape(code[1]) if code else str(status),
                "Message": html.unescape(message[1]) if message else "",
            },
            "ResponseMetadata": {"HTTPStatusCode": status},  # type: ignore[typeddict-item]  # the others aren't read
        },
        operation[1] if operation else "a request",
    )


def _has_no_number(error: Exception) -> bool:
    """Whether an error is an OSError of delta-rs. Those of Python and pyarrow have an error number."""
    return type(error) in (OSError, FileNotFoundError) and cast(OSError, error).errno is None
