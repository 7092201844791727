"""Kinds of quarantine reasons."""

import re

CRASHED = "crashed"
"""Kind of an image that kills the process that decodes it."""
OF_THE_PLACE = frozenset(["archived", "changed", "permission", "refused", "unreadable", "vanished"])
"""Kinds whose cause lies with the place of the image. The next run looks whether it can read the image now."""
BEYOND_A_LOOK = frozenset(["changed", "unreadable"])
"""Kinds of the place that reading can meet again although a look finds the file readable. One retry per version of a
file has to do, so that a bad sector doesn't make a batch every hour."""
_OF_THE_BYTES = frozenset([CRASHED, "damaged", "missing", "not an image", "too large", "truncated", "unsupported"])
_KINDS = OF_THE_PLACE | _OF_THE_BYTES
_LONGEST = 200
_ADDRESS, _NUMBER = (
    re.compile(r"(file|s3)://\S+"),
    re.compile(r"\b(\d[\d,]*|[0-9a-f]{2}( [0-9a-f]{2}){2,})\b"),
)
"""Parts of a reason that differ between images. A number may be bytes in hexadecimal."""


def reason_kind(reason: str) -> str:
    """Return the kind of a quarantine reason, or `other`. Prometheus keeps a time series for every value it sees."""
    kind = reason.partition(":")[0]
    return kind if kind in _KINDS else "other"


def is_retryable(reason: str) -> bool:
    """Whether the cause lies with the place of the image, which may change, rather than with its bytes."""
    return reason_kind(reason) in OF_THE_PLACE


def general_reason(reason: str) -> str:
    """Return a reason without the parts that differ between images, so that equal reasons can be counted."""
    return _NUMBER.sub("N", _ADDRESS.sub("…", reason))[:_LONGEST]
