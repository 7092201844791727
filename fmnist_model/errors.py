"""What can be wrong with the things a model is made from."""


class InvalidDataset(ValueError):
    """A data set, or a file of it, is not what it should be: the message names the file and what is wrong."""


class InvalidWeights(ValueError):
    """Weights that don't fit the network, or can't be read safely."""


class InvalidImage(ValueError):
    """A file that is no image, or none that can be classified."""
