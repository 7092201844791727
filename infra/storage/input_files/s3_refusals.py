"""What S3's answer about one object means for its image: the reason for its quarantine."""

from typing import TYPE_CHECKING, Any

from infra.storage.input_files.interface import CHANGED, DENIED, VANISHED
from infra.storage.object_store.s3_errors import blame, error_code, http_status

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_LONGEST_MESSAGE = 120

_WITHOUT_DETAILS = frozenset(
    ["", "AccessDenied", "NoSuchKey", "NoSuchVersion", "PreconditionFailed", "InvalidRange", "MethodNotAllowed"]
)
_BY_STATUS = {403: DENIED, 404: VANISHED, 410: VANISHED, 412: CHANGED, 416: CHANGED}
"""Reasons for answers whose code says no more than their status. 416: the object became shorter."""


def refusal(error: "ClientError") -> str | None:
    """Return why S3 refuses one object, as a reason for quarantine. None if the error isn't about the object."""
    if blame(error) != "object":
        return None
    code, status = error_code(error), http_status(error)
    details: Any = error.response.get("Error", {})
    message = " ".join(str(details.get("Message") or "").split())
    if reason := _special_reason(code, message, error.response):
        return reason
    if code in _WITHOUT_DETAILS or code == str(status):
        return _BY_STATUS.get(status, f"refused: S3 answers {status} without saying why")
    return f"refused: S3 answers {status} {code}" + (f" ({message[:_LONGEST_MESSAGE]})" if message else "")


def _special_reason(code: str, message: str, response: Any) -> str | None:
    is_deleted = response["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-delete-marker") == "true"
    reasons = [
        (code == "InvalidObjectState", _archived(response)),
        (code.startswith("KMS."), f"refused: the KMS key of the object can't be used ({code})"),
        (
            code == "AccessDenied" and "kms:" in message.lower(),
            "permission: using the KMS key of the object is denied",
        ),
        (
            code == "InvalidRequest" and "encryption" in message.lower(),
            "refused: the object is encrypted with a customer key (SSE-C), which only the customer has",
        ),
        (code == "MethodNotAllowed" and is_deleted, VANISHED),
    ]
    return next((reason for applies, reason in reasons if applies), None)


def _archived(response: Any) -> str:
    found = [response.get(name) or response["Error"].get(name) for name in ("StorageClass", "AccessTier")]
    place = " ".join(filter(None, found)) or "of an archive"
    return f"archived: the object is in storage class {place}, and must be restored before it can be read"
