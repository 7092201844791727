"""Images that a container names by path, as Hugging Face's `datasets` does for images that it didn't embed."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from fmnist_model.formats.interface import BATCH_BYTES, MAX_IMAGE_BYTES
from fmnist_model.formats.lists import resolve
from infra.storage.input_files import InputFile, InputUnreadable, read_input, stat_input
from infra.storage.uris import bucket_and_key, local_path, possible_uris
from tasks.classification.reading_errors import reason_of

_THREADS = 16
"""Files read at the same time. For remote files, most of the time is spent waiting."""
_SHOWN = 200
"""Characters of a path to show in a reason."""

Content = bytes | str
"""The bytes of an image file, or the reason why it can't be read."""


def read_paths(paths: Mapping[int, str], container: str) -> Iterator[dict[int, Content]]:
    """Read the files that a container names.

    Args:
        paths: path or URI of each image by its row, in order. Relative paths start at the container's folder.
        container: URI of the container.

    Yields:
        The contents by row, in order, in parts of at most 64 MiB or one file.

    Raises:
        RequestError, JobError: the store, the account or this machine is to blame.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        files = threads.map(lambda path: _find(path, container), paths.values())
        part: dict[int, InputFile | str] = {}
        size = 0
        for row, found in zip(paths, files, strict=True):
            file_bytes = min(found.size, MAX_IMAGE_BYTES) if isinstance(found, InputFile) else 0
            if part and size + file_bytes > BATCH_BYTES:
                yield _contents(part, threads)
                part, size = {}, 0
            part[row] = found
            size += file_bytes
        if part:
            yield _contents(part, threads)


def _contents(part: Mapping[int, InputFile | str], threads: ThreadPoolExecutor) -> dict[int, Content]:
    return dict(zip(part, threads.map(_read, part.values()), strict=True))


def _read(found: InputFile | str) -> Content:
    if isinstance(found, str):
        return found
    try:
        return read_input(found.uri, found.fingerprint, MAX_IMAGE_BYTES)
    except Exception as error:  # noqa: BLE001 (one file must not stop the others)
        return reason_of(error, found.uri)


def _find(path: str, container: str) -> InputFile | str:
    """Look up a file, and return it, or the reason why it can't be used."""
    if not path:
        return "missing: the image is null"
    try:
        for uri in possible_uris(resolve(path, _location(container))):
            if found := stat_input(uri):
                return found
    except InputUnreadable as reason:
        return f"missing: the file holds only a path, {path[:_SHOWN]}, and {reason}"
    except Exception as error:  # noqa: BLE001 (one file must not stop the others)
        return reason_of(error, container)
    return f"missing: the file holds only a path, {path[:_SHOWN]}, and no file is there"


def _location(uri: str) -> str:
    """Return a container's location as `resolve` takes it."""
    return local_path(uri) if uri.startswith("file://") else "s3://{}/{}".format(*bucket_and_key(uri))
