"""A file that holds images, as it was listed."""

from typing import NamedTuple

from fmnist_model.formats import container_kind
from fmnist_model.images.decode import is_image_name

UNUSABLE = "unusable"
"""Kind of a list's entry that can't be read, as planning found out. Its fingerprint is the reason for quarantine."""


class ListedFile(NamedTuple):
    """A row of `FILE_SCHEMA`."""

    uri: str
    fingerprint: str
    kind: str
    size: int
    label: int | None = None


def file_kind(uri: str) -> str | None:
    """Return `image`, a kind of container, or None for a file that holds no images. Its name decides."""
    return "image" if is_image_name(uri) else container_kind(uri)
