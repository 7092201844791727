"""Lists of images: find out whether a file is one, and look its entries up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.formats.uri_list import is_list_name, is_uri_list, read_list, resolve
from infra.storage.input_files import NOT_THERE, InputFile, InputUnreadable, filesystem_of, stat_input
from infra.storage.uris import possible_uris, real_folder
from tasks.classification.containers import planned_fingerprint
from tasks.classification.listed_file import ListedFile, file_kind
from tasks.classification.options import ReadOptions

_THREADS = 16
"""Entries looked up at the same time. For remote files, most of the time is spent waiting."""
_FOLDERS = 10_000
"""Folders of listed files whose symbolic links are resolved only once."""


def is_list(file: InputFile, location: str, named: list[str]) -> bool:
    """Return whether a file is a list. A Parquet file can only be one if the location names it and not its folder."""
    if is_list_name(location):
        return is_list_name(file.uri)
    if file.uri not in named:
        return False
    filesystem, path = filesystem_of(file.uri)
    try:
        return is_uri_list(pq.read_schema(path, filesystem=filesystem))
    except (pa.ArrowException, OSError, UnicodeDecodeError):  # the container's reader reports the error
        return False


def files_in_list(file: InputFile, options: ReadOptions) -> Iterator[ListedFile]:
    """Look up the files that a list names, in the order of the list."""
    filesystem, path = filesystem_of(file.uri)
    list_location = path if path.startswith("/") else f"s3://{path}"
    cached_folder = lru_cache(_FOLDERS)(real_folder)
    label_column = options.label_column if file.uri.lower().endswith((".csv", ".tsv", ".parquet")) else None
    with filesystem.open_input_file(path) as opened, ThreadPoolExecutor(_THREADS) as threads:
        for entries in read_list(opened, path.rpartition("/")[2], file.uri, label_column=label_column):
            listed = [
                possible_uris(resolve(location, list_location), resolve_folder=cached_folder)
                for location in entries.locations
            ]
            for (uri, found), label in zip(threads.map(_find, listed), entries.labels, strict=True):
                kind = (file_kind(uri) or "image") if found else "image"
                fingerprint, size = (planned_fingerprint(found, kind), found.size) if found else (NOT_THERE, 0)
                yield ListedFile(uri, fingerprint, kind, size, label)


def _find(uris: list[str]) -> tuple[str, InputFile | None]:
    """Return the first URI that a file has, and the file. Without a file, return the first URI."""
    for uri in uris:
        with suppress(InputUnreadable):  # reading the image reports the reason, and the rest of the list is classified
            if found := stat_input(uri):
                return uri, found
    return uris[0], None
