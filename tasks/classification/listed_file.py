"""A file that holds images, as it was listed."""

import re
from typing import NamedTuple

from fmnist_model.formats import container_kind
from fmnist_model.images.endings import UNSUPPORTED_IMAGE_SUFFIXES, is_image_name
from infra.storage.tables.planning import staged_inputs
from infra.storage.uris import local_path

METADATA_FILE = "metadata file"
LABEL_FILE = "label file"

_METADATA_NAMES = frozenset(
    {
        "authors",
        "changelog",
        "checksums",
        "citation",
        "copying",
        "dockerfile",
        "licence",
        "license",
        "makefile",
        "manifest",
        "md5sum",
        "md5sums",
        "notice",
        "readme",
        "sha1sums",
        "sha256sums",
    }
)
"""Names without an ending that hold text, in lower case."""
_LABEL_FILE = re.compile(r".*(idx1-ubyte|\.idx1)(\.gz)?|.*label.*\.idx(\.gz)?")

UNUSABLE = staged_inputs.UNUSABLE
"""Kind of a list's entry that can't be read, as planning found out. Its fingerprint is the reason for quarantine."""


class ListedFile(NamedTuple):
    """A row of `FILE_SCHEMA`."""

    uri: str
    fingerprint: str
    kind: str
    size: int
    label: int | None = None


def file_kind(uri: str) -> str | None:
    """Return `image`, a kind of container, or None for a file to pass over. Its name decides.

    A name without an ending can be that of an image, and its content decides when it is read. Files that accompany
    data have such names too, and are recognized by convention: `_SUCCESS`, `README`, `train-labels-idx1-ubyte`.
    """
    if is_image_name(uri):
        return "image"
    return container_kind(uri) or (None if passed_over_kind(uri) else "image")


def named_kind(uri: str) -> str | None:
    """Return the kind of a file that the user names itself. An image in a format that can't be decoded is an image."""
    return file_kind(uri) or ("image" if passed_over_kind(uri) in UNSUPPORTED_IMAGE_SUFFIXES else None)


def passed_over_kind(uri: str) -> str:
    """Return the kind under which to count a file that holds no images. Empty if its name has no ending."""
    name = uri.rpartition("/")[2].lower()
    if _LABEL_FILE.fullmatch(name):
        return LABEL_FILE
    if name in _METADATA_NAMES:
        return METADATA_FILE
    stem, _, ending = name.rpartition(".")
    has_ending = stem and ending and " " not in ending
    if name.startswith("_") and not has_ending:
        return METADATA_FILE
    return f".{ending}" if has_ending else ""


def images_of_labels(uri: str) -> list[str]:
    """Return the URIs of the IDX files that a label file can belong to, see `idx_images.label_file_name`."""
    folder, _, name = uri.rpartition("/")
    images = re.sub("label", _image_word, re.sub("idx1", "idx3", name, flags=re.IGNORECASE), flags=re.IGNORECASE)
    other = images.removesuffix(".gz") if images.endswith(".gz") else f"{images}.gz"
    return [f"{folder}/{images}", f"{folder}/{other}"]


def _image_word(found: re.Match[str]) -> str:
    return "IMAGE" if found[0].isupper() else "image"


def path_or_uri(uri: str) -> str:
    """Return the path of a local file, or the URI of another."""
    return local_path(uri) if uri.startswith("file://") else uri
