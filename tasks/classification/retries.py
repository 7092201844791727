"""Look whether files can be read now that an earlier run couldn't read."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from infra.storage.input_files import NOT_THERE, can_be_read
from tasks.classification.containers import cut_container
from tasks.classification.listed_file import UNUSABLE, ListedFile
from tasks.classification.options import ReadOptions
from tasks.classification.passed_over import PassedOver

_LOOKS_AT_ONCE = 16


def look_at(files: pa.RecordBatch, options: ReadOptions) -> pa.BooleanArray:
    """Return for each file whether it can be read now.

    The first byte of an image file is read, which also shows archived objects and missing permissions. A container has
    to open, because most of those in quarantine are damaged, and stay so until their fingerprint changes.

    Args:
        files: rows of `FILE_SCHEMA`.
        options: options for reading the images.

    Raises:
        InputsUnavailable: S3 or this machine fails.
    """
    listed = [ListedFile(**row) for row in files.to_pylist()]
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as threads:
        return pa.array(threads.map(lambda file: _is_readable(file, options), listed), pa.bool_())


def _is_readable(file: ListedFile, options: ReadOptions) -> bool:
    # The fingerprint of both changes once they can be read.
    if file.fingerprint == NOT_THERE or file.kind == UNUSABLE or not can_be_read(file.uri):
        return False
    if file.kind == "image":
        return True
    kinds = cut_container(file, options, PassedOver()).column("kind").to_pylist()
    return bool(kinds) and "unreadable" not in kinds
