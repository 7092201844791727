"""An S3 error is the server's failure if a retry may help. Otherwise the request or a setting is wrong."""

import pytest
from botocore import exceptions as botocore_errors
from botocore.exceptions import BotoCoreError, ClientError

from infra.storage.object_store.s3_errors import is_server_failure


def answer(status: int, code: str, operation: str = "PutObject") -> ClientError:
    response = {"Error": {"Code": code, "Message": "of a test"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, operation)  # type: ignore[arg-type] # a real one holds more


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "InternalError"),
        (503, "SlowDown"),
        (502, "502"),
        (501, "NotImplemented"),
        (429, "TooManyRequests"),
        (409, "ConditionalRequestConflict"),
        (403, "QuotaExceeded"),
        (400, "BadDigest"),
        (404, "NoSuchUpload"),
    ],
)
def test_answer_that_the_server_is_to_blame_for(status: int, code: str) -> None:
    assert is_server_failure(answer(status, code))


@pytest.mark.parametrize(
    ("status", "code", "operation"),
    [
        (403, "AccessDenied", "PutObject"),
        (403, "InvalidAccessKeyId", "PutObject"),
        (403, "SignatureDoesNotMatch", "PutObject"),
        (400, "ExpiredToken", "PutObject"),
        (403, "RequestTimeTooSkewed", "PutObject"),
        (404, "NoSuchBucket", "PutObject"),
        (404, "404", "HeadBucket"),
        (301, "PermanentRedirect", "PutObject"),
        (400, "InvalidBucketName", "PutObject"),
        (411, "MissingContentLength", "PutObject"),
    ],
)
def test_answer_that_the_request_or_a_setting_is_to_blame_for(status: int, code: str, operation: str) -> None:
    assert not is_server_failure(answer(status, code, operation))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (botocore_errors.EndpointConnectionError(endpoint_url="http://s3"), True),
        (botocore_errors.ConnectTimeoutError(endpoint_url="http://s3"), True),
        (botocore_errors.ReadTimeoutError(endpoint_url="http://s3"), True),
        (botocore_errors.ConnectionClosedError(endpoint_url="http://s3"), True),
        (botocore_errors.ProxyConnectionError(proxy_url="http://proxy"), True),
        (botocore_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
        (botocore_errors.SSLError(endpoint_url="https://s3", error="untrusted"), False),
        (botocore_errors.NoCredentialsError(), False),
        (botocore_errors.ProfileNotFound(profile="nobody"), False),
        (botocore_errors.NoRegionError(), False),
        (botocore_errors.InvalidEndpointConfigurationError(msg="not a URL"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_sdk_error_is_the_servers_if_the_connection_failed(error: BotoCoreError, expected: bool) -> None:
    assert is_server_failure(error) is expected
