"""S3 errors in one line each, for the person who has to fix them.

The line never holds a secret. An error's own text is left out if it may quote the configuration, such as the output of
a credential process.
"""

import os

from botocore import exceptions as botocore_errors
from botocore.exceptions import BotoCoreError, ClientError

CREDENTIAL_ERRORS = (
    botocore_errors.NoCredentialsError,
    botocore_errors.PartialCredentialsError,
    botocore_errors.CredentialRetrievalError,
    botocore_errors.RefreshWithMFAUnsupportedError,
    botocore_errors.SSOError,
    botocore_errors.TokenRetrievalError,
    botocore_errors.NoAuthTokenError,
)

DAMAGED_ON_THE_WAY = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"})
"""Codes for a request body that did not arrive whole. botocore does not retry them."""

_SERVER_FAILURES = DAMAGED_ON_THE_WAY | {
    "ConditionalRequestConflict",
    "InternalError",
    "NoSuchUpload",
    "QuotaExceeded",
    "SlowDown",
}
"""Codes that neither the request nor a setting causes, whatever their HTTP status."""
_CONNECTION_FAILURES = (
    botocore_errors.ConnectionError,
    botocore_errors.HTTPClientError,
    botocore_errors.IncompleteReadError,
    botocore_errors.ChecksumError,
    botocore_errors.FlexibleChecksumError,
    botocore_errors.CapacityNotAvailableError,
)

_CREDENTIALS_ADVICE = (
    "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary ones)."
)
_REGION_ADVICE = "Set AWS_REGION to the region of the bucket."

_BY_CODE = {
    "NoSuchBucket": (
        "there is no bucket {bucket} at {endpoint}",
        "Create it, or correct FMNIST_STORE or AWS_ENDPOINT_URL.",
    ),
    "AccessDenied": (
        "{endpoint} refuses {operation} to these credentials",
        "Allow them s3:ListBucket on the bucket and s3:GetObject, s3:PutObject and s3:DeleteObject on its objects, or "
        "use other credentials.",
    ),
    "InvalidAccessKeyId": ("{endpoint} does not know this access key", _CREDENTIALS_ADVICE),
    "SignatureDoesNotMatch": ("{endpoint} finds the secret key wrong", _CREDENTIALS_ADVICE),
    "ExpiredToken": (
        "the session token has expired",
        "Log in again, or set AWS_PROFILE to a profile that refreshes its token.",
    ),
    "InvalidToken": ("{endpoint} does not know this session token", _CREDENTIALS_ADVICE),
    "RequestTimeTooSkewed": (
        "this machine's clock differs too much from the clock of {endpoint}",
        "Set the clock (NTP).",
    ),
    "PermanentRedirect": ("the bucket {bucket} is in another region", _REGION_ADVICE),
    "AuthorizationHeaderMalformed": ("the bucket {bucket} is in another region", _REGION_ADVICE),
    "ConditionalRequestConflict": ("other processes keep writing the same object", "Try again later."),
    "SlowDown": ("{endpoint} is overloaded and keeps refusing {operation}", "Try again later."),
    "QuotaExceeded": ("{endpoint} says that the quota is used up", "Free space, or have the quota raised."),
    "InternalError": ("{endpoint} keeps failing at {operation}", "Check the server, then try again."),
}
_QUOTED = frozenset({"AccessDenied", "SlowDown", "QuotaExceeded", "InternalError"})
"""Codes for which the server's own message is added."""
_SAME = {
    "403": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "301": "PermanentRedirect",
    "OperationAborted": "ConditionalRequestConflict",
    "ConcurrentModification": "ConditionalRequestConflict",
    "TokenRefreshRequired": "ExpiredToken",
    "ExpiredTokenException": "ExpiredToken",
    "RequestExpired": "RequestTimeTooSkewed",
    "503": "SlowDown",
    "ServiceUnavailable": "SlowDown",
    "Throttling": "SlowDown",
    "ThrottlingException": "SlowDown",
    "TooManyRequests": "SlowDown",
    "RequestLimitExceeded": "SlowDown",
    "500": "InternalError",
    "502": "InternalError",
    "504": "InternalError",
    "UnknownError": "InternalError",
    "InsufficientCapacity": "QuotaExceeded",
    "XMinioStorageFull": "QuotaExceeded",
}
_UNREACHABLE = (
    "nothing answers at {endpoint}",
    "Start the server, or correct AWS_ENDPOINT_URL.",
)
_BY_CLASS: tuple[tuple[type[BotoCoreError], tuple[str, str]], ...] = (
    (botocore_errors.NoCredentialsError, ("there are no credentials", _CREDENTIALS_ADVICE)),
    (botocore_errors.PartialCredentialsError, ("the credentials are incomplete", _CREDENTIALS_ADVICE)),
    (botocore_errors.ProfileNotFound, ("there is no AWS profile {profile}", "Correct AWS_PROFILE.")),
    (
        botocore_errors.ConfigParseError,
        ("the AWS configuration can't be read", "Correct ~/.aws/config and ~/.aws/credentials."),
    ),
    (botocore_errors.NoRegionError, ("no region is set", _REGION_ADVICE)),
    (botocore_errors.InvalidRegionError, ("the region is not a region's name", _REGION_ADVICE)),
    (
        botocore_errors.InvalidEndpointConfigurationError,
        ("the endpoint is not a URL", "Correct AWS_ENDPOINT_URL: http://HOST:PORT or https://HOST."),
    ),
    (
        botocore_errors.SSLError,
        (
            "the certificate of {endpoint} is not trusted, or the server doesn't use TLS",
            "Set AWS_CA_BUNDLE to the certificate of its authority, or correct AWS_ENDPOINT_URL.",
        ),
    ),
    (
        botocore_errors.ProxyConnectionError,
        ("the HTTP proxy does not answer", "Correct HTTP_PROXY, HTTPS_PROXY or NO_PROXY."),
    ),
    (botocore_errors.EndpointConnectionError, _UNREACHABLE),
    (botocore_errors.ConnectTimeoutError, _UNREACHABLE),
    (
        botocore_errors.ReadTimeoutError,
        ("{endpoint} accepts requests but does not answer", "Check the server, then try again."),
    ),
    (
        botocore_errors.HTTPClientError,
        ("the connection to {endpoint} keeps breaking", "Check the server and the network, then try again."),
    ),
    (
        botocore_errors.IncompleteReadError,
        ("{endpoint} keeps cutting answers short", "Check the server and the network, then try again."),
    ),
)


def explain(error: BotoCoreError | ClientError, *, bucket: str, endpoint: str) -> str:
    """Say in two short sentences what is wrong and what to do."""
    operation = error.operation_name if isinstance(error, ClientError) else "a request"
    what, advice = _client_error(error) if isinstance(error, ClientError) else _sdk_error(error)
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    return f"{what.format(bucket=bucket, endpoint=endpoint, operation=operation, profile=profile)}. {advice}"


def is_server_failure(error: BotoCoreError | ClientError) -> bool:
    """Whether the server or the network failed, rather than the request or a setting being wrong."""
    if isinstance(error, ClientError):
        return _code(error) in _SERVER_FAILURES or http_status(error) >= 500 or http_status(error) in (408, 429)
    return isinstance(error, _CONNECTION_FAILURES) and not isinstance(error, botocore_errors.SSLError)


def error_code(error: ClientError) -> str:
    """Return the server's code, or the HTTP status if the answer has no body, as for HEAD."""
    return str(error.response.get("Error", {}).get("Code", ""))


def http_status(error: ClientError) -> int:
    """Return the HTTP status of the answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    """Return the server's code, or its synonym in `_BY_CODE`."""
    if error.operation_name == "HeadBucket" and http_status(error) == 404:
        return "NoSuchBucket"
    return _SAME.get(error_code(error), error_code(error))


def _client_error(error: ClientError) -> tuple[str, str]:
    code = _code(error)
    message = str(error.response.get("Error", {}).get("Message") or "").replace("{", "{{").replace("}", "}}")
    if code in _BY_CODE:
        what, advice = _BY_CODE[code]
        is_quoted = code in _QUOTED and message not in ("", "Unknown", "Forbidden", error_code(error))
        return f'{what} ("{message}")' if is_quoted else what, advice
    answer = f"{http_status(error)} {code} ({message or 'no message'})"
    return f"{{endpoint}} answers {answer} to {{operation}}", "See the server's documentation."


def _sdk_error(error: BotoCoreError) -> tuple[str, str]:
    for kind, explanation in _BY_CLASS:
        if isinstance(error, kind):
            return explanation
    if isinstance(error, CREDENTIAL_ERRORS):
        return f"getting credentials failed ({type(error).__name__})", "Log in again, or correct the AWS profile."
    text = str(error).replace("{", "{{").replace("}", "}}").replace("\n", " ")
    return f"{type(error).__name__}: {text}", "Check the AWS settings."
