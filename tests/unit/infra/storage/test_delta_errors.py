"""What the texts of delta-rs' errors say. The texts are those of deltalake 1.6.6."""

import errno

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from infra.storage.object_store.delta_errors import missing_file_in, os_error_in, s3_error_in, text_of
from infra.storage.object_store.s3_errors import error_code, explain, http_status, is_server_failure

ENDPOINT = "http://s3.test:9000"
NEXT = "\n          \x1b[31m↳\x1b[0m "
FAILED = (
    f"Kernel error -> Generic S3 error{NEXT}Error performing GET {ENDPOINT}/b/k in 3ms, after 2 retries, max_retries"
)
NO_ANSWER = f"{FAILED}{NEXT}HTTP error{NEXT}error sending request{NEXT}"


def found_in(text: str) -> BotoCoreError | ClientError:
    found = s3_error_in(text_of(OSError(text)), ENDPOINT)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("status", "code", "is_transient"),
    [(403, "SignatureDoesNotMatch", False), (404, "NoSuchBucket", False), (503, "SlowDown", True)],
)
def test_answer_of_the_server_is_recognized(status: int, code: str, is_transient: bool) -> None:
    body = f"<Error><Code>{code}</Code><Message>5 &lt; 6</Message></Error>"

    found = found_in(f"{FAILED} - Server returned non-2xx status code{NEXT}{status} Some Words{NEXT}{body}\n")

    assert isinstance(found, ClientError)
    assert (http_status(found), error_code(found), found.operation_name) == (status, code, "GET")
    assert found.response["Error"]["Message"] == "5 < 6"
    assert is_server_failure(found) is is_transient


def test_answer_in_one_line_is_recognized() -> None:
    found = found_in(
        f"Object Store error: {FAILED} - Server returned non-2xx status code: 500 Internal: <Code>X</Code>"
    )

    assert isinstance(found, ClientError)
    assert (http_status(found), error_code(found)) == (500, "X")


@pytest.mark.parametrize(
    ("text", "words", "is_transient"),
    [
        (
            f"{NO_ANSWER}client error (Connect){NEXT}tcp connect error{NEXT}Connection refused (os error 111)",
            "answers",
            True,
        ),
        (f"{NO_ANSWER}client error (Connect){NEXT}dns error{NEXT}Name or service not known", "answers", True),
        (f"{NO_ANSWER}operation timed out", "does not answer", True),
        (f"{NO_ANSWER}client error (SendRequest){NEXT}connection closed before message completed", "breaking", True),
        (f"{NO_ANSWER}client error (Connect){NEXT}invalid peer certificate: UnknownIssuer", "certificate", False),
        (f"{NO_ANSWER}client error (Connect){NEXT}received corrupt message of type InvalidContentType", "TLS", False),
        (f"{FAILED} - Received redirect without LOCATION", "region", False),
    ],
)
def test_failed_connection_is_recognized(text: str, words: str, is_transient: bool) -> None:
    found = found_in(text)

    assert words in explain(found, bucket="bucket", endpoint=ENDPOINT)
    assert is_server_failure(found) is is_transient


def test_other_errors_are_not_taken_for_failures_of_the_store() -> None:
    text = text_of(OSError("Generic delta kernel error: No files in log segment"))

    assert s3_error_in(text, ENDPOINT) is None
    assert os_error_in(text) is None
    assert missing_file_in(text) is None


def test_error_of_the_operating_system_and_missing_file_are_recognized() -> None:
    full = os_error_in("Generic LocalFileSystem error: Unable to copy data: No space left on device (os error 28)")
    denied = os_error_in('Error: Os { code: 13, kind: PermissionDenied, message: "Permission denied" }')

    assert full is not None
    assert full.errno == errno.ENOSPC
    assert denied is not None
    assert denied.errno == errno.EACCES
    assert missing_file_in("Object at location a b/part.parquet not found Error performing GET") == "a b/part.parquet"
