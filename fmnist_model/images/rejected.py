"""Say why an image can't be decoded."""

import zlib

from fmnist_model.errors import describe_unexpected, one_line


class ImageRejected(Exception):
    """An image can't be decoded. The message is the reason for quarantine, such as `truncated: …`."""


_EXPECTED = (OSError, SyntaxError, ValueError, EOFError, OverflowError, IndexError, TypeError, zlib.error)
"""What Pillow raises for damaged files. Their text says enough."""

_CUT = ("truncated", "not enough image data", "unexpected end of file", "reached eof")
_UNSUPPORTED = (
    "unsupported", "not supported", "not yet supported", "cannot handle", "unknown pixel mode",
    "unknown data organization", "not installed", "not available",
)  # fmt: skip
"""Words of Pillow's messages, in lower case."""


def reason_of(error: BaseException) -> str:
    """Return the reason for quarantine after a decoder raised an exception.

    Text of a decoder follows the kind. The class is added if the exception is unexpected.
    """
    if isinstance(error, ImageRejected):
        return str(error)
    text = one_line(error)
    if type(error).__name__ == "DecompressionBombError":
        return "too large: a decompression bomb"
    if not isinstance(error, _EXPECTED) or not text:
        return describe_unexpected(error)
    lower = text.lower()
    if any(words in lower for words in _CUT):
        return f"truncated: {text}"
    if any(words in lower for words in _UNSUPPORTED):
        return f"unsupported: {text}"
    return f"damaged: {text}"
