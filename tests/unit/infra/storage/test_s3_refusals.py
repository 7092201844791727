"""Each answer of S3 is about one object, the account or the server. Codes and statuses are those that AWS documents.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList and
https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html for keys.
"""

import pytest
from botocore import exceptions as botocore_errors
from botocore.exceptions import BotoCoreError, ClientError

from infra.storage.input_files.s3_refusals import refusal
from infra.storage.object_store.s3_errors import blame, explain


def answer(
    status: int, code: str, message: str = "", operation: str = "GetObject", headers: dict[str, str] | None = None
) -> ClientError:
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers or {}},
    }
    return ClientError(response, operation)  # type: ignore[arg-type] # a real one holds more


OBJECT = [
    (403, "AccessDenied", "permission"),
    (403, "403", "permission"),
    (403, "InvalidObjectState", "archived"),
    (404, "NoSuchKey", "vanished"),
    (404, "NoSuchVersion", "vanished"),
    (404, "404", "vanished"),
    (410, "410", "vanished"),
    (412, "PreconditionFailed", "changed"),
    (416, "InvalidRange", "changed"),
    (405, "MethodNotAllowed", "refused"),
    (400, "KMS.DisabledException", "refused"),
    (400, "KMS.KMSInvalidStateException", "refused"),
    (400, "KMS.NotFoundException", "refused"),
    (400, "InvalidRequest", "refused"),
    (400, "InvalidArgument", "refused"),
    (400, "KeyTooLongError", "refused"),
    (400, "400", "refused"),
    (409, "InvalidObjectState", "archived"),
    (451, "UnavailableForLegalReasons", "refused"),
]

ACCOUNT = [
    (400, "AuthorizationHeaderMalformed"),
    (400, "ExpiredToken"),
    (400, "InvalidBucketName"),
    (400, "InvalidToken"),
    (400, "TokenRefreshRequired"),
    (401, "AccessDenied"),
    (403, "AccountProblem"),
    (403, "AllAccessDisabled"),
    (403, "AuthFailure"),
    (403, "InvalidAccessKeyId"),
    (403, "InvalidPayer"),
    (403, "NotSignedUp"),
    (403, "RequestTimeTooSkewed"),
    (403, "SignatureDoesNotMatch"),
    (403, "UserSuspended"),
    (404, "NoSuchAccessPoint"),
    (404, "NoSuchBucket"),
    (301, "PermanentRedirect"),
    (307, "TemporaryRedirect"),
]

SERVER = [
    (400, "KMS.ThrottlingException"),
    (400, "RequestTimeout"),
    (400, "ThrottlingException"),
    (403, "RequestLimitExceeded"),
    (429, "TooManyRequests"),
    (500, "InternalError"),
    (503, "SlowDown"),
]


@pytest.mark.parametrize(("status", "code", "kind"), OBJECT)
def test_answer_about_one_object_quarantines_it(status: int, code: str, kind: str) -> None:
    reason = refusal(answer(status, code))

    assert reason is not None
    assert reason.partition(":")[0] == kind


@pytest.mark.parametrize(("status", "code"), ACCOUNT)
def test_answer_about_the_account_is_no_reason_for_quarantine(status: int, code: str) -> None:
    assert blame(answer(status, code)) == "account"
    assert refusal(answer(status, code)) is None


@pytest.mark.parametrize(("status", "code"), SERVER)
def test_failure_of_the_server_is_no_reason_for_quarantine(status: int, code: str) -> None:
    assert blame(answer(status, code)) == "server"
    assert refusal(answer(status, code)) is None


@pytest.mark.parametrize("operation", ["ListObjectsV2", "HeadBucket"])
def test_denied_listing_is_no_reason_for_quarantine(operation: str) -> None:
    assert blame(answer(403, "AccessDenied", operation=operation)) == "account"
    assert refusal(answer(403, "AccessDenied", operation=operation)) is None


@pytest.mark.parametrize(
    "error", [botocore_errors.NoCredentialsError(), botocore_errors.SSLError(endpoint_url="https://s3", error="no")]
)
def test_error_without_an_answer_is_never_about_an_object(error: BotoCoreError) -> None:
    assert blame(error) == "account"


def test_deleted_version_has_vanished() -> None:
    deleted = answer(405, "MethodNotAllowed", headers={"x-amz-delete-marker": "true"})
    assert str(refusal(deleted)).startswith("vanished:")


def test_archived_object_is_reported_with_its_storage_class() -> None:
    error = answer(403, "InvalidObjectState")
    error.response.update({"StorageClass": "INTELLIGENT_TIERING", "AccessTier": "ARCHIVE_ACCESS"})  # type: ignore[call-arg]
    assert "INTELLIGENT_TIERING ARCHIVE_ACCESS" in str(refusal(error))


def test_customer_key_is_named() -> None:
    message = "The object was stored using a form of Server Side Encryption. The correct parameters must be provided."
    assert "SSE-C" in str(refusal(answer(400, "InvalidRequest", message)))


def test_denied_use_of_a_key_is_told_apart_from_a_denied_object() -> None:
    message = "User: arn:aws:iam::111122223333:user/ana is not authorized to perform: kms:Decrypt on this resource"
    denied_key, denied = refusal(answer(403, "AccessDenied", message)), refusal(answer(403, "AccessDenied"))
    assert denied_key != denied
    assert "KMS" in str(denied_key)


def test_unknown_refusal_quotes_the_server_in_one_short_line() -> None:
    reason = str(refusal(answer(400, "WhoKnows", "one\ntwo " * 200)))
    assert "WhoKnows" in reason
    assert "\n" not in reason
    assert len(reason) < 200


@pytest.mark.parametrize("error", [answer(301, "PermanentRedirect"), answer(400, "AuthorizationHeaderMalformed")])
def test_redirect_names_the_region_and_the_setting(error: ClientError) -> None:
    error.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"] = "eu-west-3"
    text = explain(error, bucket="pictures", endpoint="https://s3", input_settings=[])
    assert "eu-west-3" in text
    assert "FMNIST_INPUT_REGION" in text


def test_advice_for_inputs_names_the_settings_in_use() -> None:
    error = botocore_errors.ProfileNotFound(profile="nobody")
    text = explain(error, bucket="pictures", endpoint="https://s3", input_settings=["PROFILE"])
    assert "nobody" in text
    assert "FMNIST_INPUT_PROFILE" in text
    assert "FMNIST_INPUT_PROFILE" not in explain(error, bucket="pictures", endpoint="https://s3")


def test_advice_about_a_requester_pays_bucket_is_only_for_inputs() -> None:
    error = answer(403, "AccessDenied", operation="ListObjectsV2")
    assert "FMNIST_INPUT_REQUESTER_PAYS" in explain(error, bucket="pictures", endpoint="https://s3", input_settings=[])
    assert "FMNIST_INPUT_REQUESTER_PAYS" not in explain(error, bucket="pictures", endpoint="https://s3")
