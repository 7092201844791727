"""Define exceptions about datasets, weights and images, and describe unexpected ones."""


class InvalidInput(ValueError):
    """Data, weights or an image can't be used. The message names the thing and the problem."""


class InvalidDataset(InvalidInput):
    """A dataset or one of its files can't be used. The message names the file and the problem."""


class NoImages(InvalidDataset):
    """A file can be read, but holds no images. For example, it holds metadata of images in another file."""


class InvalidWeights(InvalidInput):
    """The weights don't fit the network, or their file can't be read safely."""


class InvalidImage(InvalidInput):
    """The file is not an image, or not one that can be classified."""


_LONGEST_MESSAGE = 300
"""Characters of an exception's message to keep. Some quote the data that they fail on."""


def describe_unexpected(error: BaseException) -> str:
    """Describe an unexpected exception as a reason for quarantine, such as `damaged: KeyError: 7`."""
    name = type(error).__name__
    text = one_line(error)
    return f"damaged: {name}: {text}" if text else f"damaged: {name}"


def one_line(error: BaseException) -> str:
    """Return the start of an exception's message on one line, in characters that UTF-8 can encode."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (an exception's own text can fail, too)
        return ""
    return " ".join(text.split())[:_LONGEST_MESSAGE].encode("utf-8", "replace").decode()
