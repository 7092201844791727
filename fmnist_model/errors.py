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


def describe_unexpected(error: Exception) -> str:
    """Describe an unexpected exception as a reason for quarantine, such as `damaged: KeyError: 7`."""
    name = type(error).__name__
    text = one_line(error)
    return f"damaged: {name}: {text}" if text else f"damaged: {name}"


def one_line(error: Exception) -> str:
    """Return an exception's message with all line breaks replaced by spaces."""
    return " ".join(str(error).split())
