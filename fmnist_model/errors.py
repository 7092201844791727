"""What can be wrong with the things a model is made from."""


class InvalidDataset(ValueError):
    """A data set, or a file of it, is not what it should be: the message names the file and what is wrong."""


class InvalidWeights(ValueError):
    """Weights that don't fit the network, or can't be read safely."""


class InvalidImage(ValueError):
    """A file that is no image, or none that can be classified."""


def describe_unexpected(error: Exception) -> str:
    """Describe an unexpected exception as a reason for quarantine, such as `damaged: KeyError: 7`."""
    name = type(error).__name__
    text = one_line(error)
    return f"damaged: {name}: {text}" if text else f"damaged: {name}"


def one_line(error: Exception) -> str:
    """Put an exception's message on one line."""
    return " ".join(str(error).split())
