"""S3 errors in one line each, for the person who has to fix them.

The line never holds a secret. An error's own text is left out if it may quote the configuration, such as the output of
a credential process.
"""

from collections.abc import Collection
from typing import Any, Literal

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

_OF_THE_ACCOUNT = frozenset(
    {
        "AccountProblem",
        "AllAccessDisabled",
        "AuthFailure",
        "AuthorizationHeaderMalformed",
        "AuthorizationQueryParametersError",
        "CredentialsNotSupported",
        "EndpointNotFound",
        "ExpiredToken",
        "IllegalLocationConstraintException",
        "IncompleteSignature",
        "IncorrectEndpoint",
        "InvalidAccessKeyId",
        "InvalidAccessPoint",
        "InvalidAccessPointAliasError",
        "InvalidBucketName",
        "InvalidClientTokenId",
        "InvalidHostHeader",
        "InvalidPayer",
        "InvalidRegion",
        "InvalidSecurity",
        "InvalidSignature",
        "InvalidToken",
        "InvalidTokenId",
        "MissingAuthenticationToken",
        "MissingSecurityElement",
        "MissingSecurityHeader",
        "NoSuchAccessPoint",
        "NoSuchBucket",
        "NotSignedUp",
        "OptInRequired",
        "PermanentRedirect",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "UnauthorizedAccess",
        "UnrecognizedClientException",
        "UserSuspended",
    }
)
"""Codes with status 4xx that a request for any other object of the bucket would get too.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList
"""

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
    "PermanentRedirect": ("the bucket {bucket} is in another region{region}", _REGION_ADVICE),
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
    "307": "PermanentRedirect",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "Redirect": "PermanentRedirect",
    "TemporaryRedirect": "PermanentRedirect",
    "OperationAborted": "ConditionalRequestConflict",
    "ConcurrentModification": "ConditionalRequestConflict",
    "TokenRefreshRequired": "ExpiredToken",
    "ExpiredTokenException": "ExpiredToken",
    "RequestExpired": "RequestTimeTooSkewed",
    "503": "SlowDown",
    "ServiceUnavailable": "SlowDown",
    "Throttling": "SlowDown",
    "ThrottlingException": "SlowDown",
    "ThrottledException": "SlowDown",
    "KMS.ThrottlingException": "SlowDown",
    "TooManyRequests": "SlowDown",
    "TooManyRequestsException": "SlowDown",
    "RequestLimitExceeded": "SlowDown",
    "RequestThrottled": "SlowDown",
    "RequestThrottledException": "SlowDown",
    "BandwidthLimitExceeded": "SlowDown",
    "500": "InternalError",
    "502": "InternalError",
    "504": "InternalError",
    "UnknownError": "InternalError",
    "InsufficientCapacity": "QuotaExceeded",
    "XMinioStorageFull": "QuotaExceeded",
}
_INPUT_ADVICE = {
    "NoSuchBucket": "Correct the input. If it is on another server than the store, set FMNIST_INPUT_ENDPOINT_URL.",
    "AccessDenied": "Allow these credentials s3:ListBucket on the bucket and s3:GetObject on its objects, or set "
    "FMNIST_INPUT_PROFILE to others. For a public bucket, set FMNIST_INPUT_UNSIGNED=true. If the requester pays, set "
    "FMNIST_INPUT_REQUESTER_PAYS=true.",
    "PermanentRedirect": "Set FMNIST_INPUT_REGION to the region of the bucket, and remove FMNIST_INPUT_ENDPOINT_URL or "
    "set it to an endpoint of that region.",
}
"""Advice by code for inputs, which may have another endpoint and other credentials than the store."""
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


def explain(
    error: BotoCoreError | ClientError, *, bucket: str, endpoint: str, input_settings: Collection[str] | None = None
) -> str:
    """Say in two short sentences what is wrong and what to do.

    Args:
        error: the error to explain.
        bucket: the bucket that was asked for.
        endpoint: where the request went.
        input_settings: if an input was being read, the names of the FMNIST_INPUT_ settings that are set: `PROFILE`, …
    """
    operation = error.operation_name if isinstance(error, ClientError) else "a request"
    what, advice = _client_error(error) if isinstance(error, ClientError) else _sdk_error(error)
    if input_settings is not None:
        advice = _input_advice(error, advice, input_settings)
    profile = error.kwargs.get("profile") if isinstance(error, botocore_errors.ProfileNotFound) else None
    known = {"bucket": bucket, "endpoint": endpoint, "operation": operation, "profile": profile}
    return f"{what.format(**known, region=_other_region(error))}. {advice}"


def blame(error: BotoCoreError | ClientError) -> Literal["server", "account", "object"]:
    """Find out what an error is about.

    Returns:
        `server` if the server or the network failed, so that a retry may help. `object` if S3 answers a request for one
        object with a 4xx status that the other objects of the bucket don't get: it is archived, gone, or its key is
        disabled. `account` if the credentials, the bucket, the region, the clock or another setting is wrong. A HEAD
        has no body, so `has_no_code` tells whether the answer may be about the account after all.
    """
    if is_server_failure(error):
        return "server"
    if not isinstance(error, ClientError) or error.operation_name not in ("GetObject", "HeadObject"):
        return "account"
    is_refused = 400 <= http_status(error) < 500 and http_status(error) != 401
    return "object" if is_refused and not _OF_THE_ACCOUNT & {error_code(error), _code(error)} else "account"


def is_server_failure(error: BotoCoreError | ClientError) -> bool:
    """Whether the server or the network failed, rather than the request or a setting being wrong."""
    if isinstance(error, ClientError):
        return _code(error) in _SERVER_FAILURES or http_status(error) >= 500 or http_status(error) in (408, 429)
    return isinstance(error, _CONNECTION_FAILURES) and not isinstance(error, botocore_errors.SSLError)


def has_no_code(error: ClientError) -> bool:
    """Whether the answer has only a status, as an answer to HEAD does."""
    return error_code(error) in ("", str(http_status(error)))


def is_throttling(code: str) -> bool:
    """Whether a code asks the client to send fewer requests. Some come with status 400."""
    return _SAME.get(code, code) == "SlowDown"


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


def _other_region(error: BotoCoreError | ClientError) -> str:
    """Return the region of the bucket in parentheses if the answer names it."""
    if not isinstance(error, ClientError):
        return ""
    details: Any = error.response.get("Error", {})
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or details.get("Region")
    return f" ({region})" if region else ""


def _input_advice(error: BotoCoreError | ClientError, advice: str, input_settings: Collection[str]) -> str:
    if isinstance(error, ClientError):
        advice = _INPUT_ADVICE.get(_code(error), advice)
    elif isinstance(error, botocore_errors.NoCredentialsError):
        advice = f"{advice} For a public bucket, set FMNIST_INPUT_UNSIGNED=true."
    for name in input_settings:
        advice = advice.replace(f"AWS_{name}", f"FMNIST_INPUT_{name}")
    return advice


def _sdk_error(error: BotoCoreError) -> tuple[str, str]:
    for kind, explanation in _BY_CLASS:
        if isinstance(error, kind):
            return explanation
    if isinstance(error, CREDENTIAL_ERRORS):
        return f"getting credentials failed ({type(error).__name__})", "Log in again, or correct the AWS profile."
    text = str(error).replace("{", "{{").replace("}", "}}").replace("\n", " ")
    return f"{type(error).__name__}: {text}", "Check the AWS settings."
