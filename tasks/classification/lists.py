"""Lists of images: find out whether a file is one, and look its entries up."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fmnist_model.errors import InvalidDataset, describe_unexpected
from fmnist_model.formats import container_kind
from fmnist_model.formats.lists import ListEntry, has_columns, is_list_name, is_parquet_list, read_list, resolve
from fmnist_model.images.endings import UNSUPPORTED_IMAGE_SUFFIXES, is_image_name
from infra.errors import JobError, RequestError
from infra.storage.input_files import (
    FOLDER,
    NOT_THERE,
    InputFile,
    InputNotFound,
    InputUnreadable,
    list_input_files,
    open_input,
    stat_input,
)
from infra.storage.uris import bucket_and_key, local_path, percent_decode, possible_uris, real_folder
from tasks.classification.containers import planned_fingerprint
from tasks.classification.listed_file import UNUSABLE, ListedFile
from tasks.classification.options import ReadOptions

_THREADS = 16
"""Entries looked up at the same time. For remote files, most of the time is spent waiting."""
_FOLDERS = 10_000
"""Folders of listed files whose symbolic links are resolved only once."""
_CHECKED_ENTRIES = 1_000
"""Entries at the start of a list, of which at least one must exist."""
_CHECKED_AT_ONCE = 50
_LABELLED_ENTRIES = 1_000
"""Entries `path label` after which the path alone is looked up first, which halves the requests to S3."""

_EXAMPLES = 3
_SHOWN = 200
"""Characters of an entry to show."""
_REASONS_IF_THERE = ("permission:", "archived:", "refused:")
"""Starts of the reasons that leave open whether the file exists."""

_OTHER_ENDINGS = tuple(UNSUPPORTED_IMAGE_SUFFIXES)

_SECRET = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@]*@")
_OTHER_SCHEME = re.compile(r"(?!(?:file|s3[an]?):)([A-Za-z][A-Za-z0-9+.-]+:(?=//|image/))", re.IGNORECASE)
_GLOB_SIGN = re.compile(r"[*?\[]")
_FRAGMENT = re.compile(r"#(?:row=\d+|member=.*)\Z", re.DOTALL)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|.*\\")


def is_list(file: InputFile, location: str, named: list[str], options: ReadOptions) -> bool:
    """Return whether a file is a list. A Parquet file can only be one if the location names it and not its folder."""
    if is_list_name(location):
        return is_list_name(file.uri)
    if file.uri not in named or not file.uri.lower().endswith(".parquet"):
        return False
    try:
        with open_input(file.uri) as opened:
            return is_parquet_list(opened, file.uri, location_column=options.image_column)
    except (InvalidDataset, InputUnreadable):  # the container's reader reports the error
        return False


def files_in_list(file: InputFile, options: ReadOptions) -> Iterator[ListedFile]:
    """Look up the files that a list names, in the order of the list.

    Every entry becomes a row. The kind of one that can't be used is `UNUSABLE`, and its fingerprint is the reason.

    Raises:
        InvalidDataset: the list is damaged, or lacks a column.
        RequestError: the list can't be read.
    """
    with _read(file, options) as batches, ThreadPoolExecutor(_THREADS) as threads:
        look_up = _LookUp(file.uri)
        for entries in batches:
            for found in threads.map(look_up, entries):
                if found.file is not None:
                    yield found.file
            look_up.learn()


def check_list(file: InputFile, options: ReadOptions) -> None:
    """Check that one of the first entries of a list exists.

    Raises:
        InputNotFound: the list is empty.
        RequestError: none of them exists. The message names the first ones, and where they were looked for.
    """
    with _read(file, options) as batches, ThreadPoolExecutor(_THREADS) as threads:
        look_up = _LookUp(file.uri)
        entries = islice((entry for batch in batches for entry in batch), _CHECKED_ENTRIES)
        checked: list[_Found] = []
        while chunk := list(islice(entries, _CHECKED_AT_ONCE)):
            found = [one for one in threads.map(look_up, chunk) if one.file is not None]
            if any(one.exists for one in found):
                return
            checked += found
    if not checked:
        raise InputNotFound(f"{file.uri} lists no images. Add the paths or URIs of images, one per line.")
    raise RequestError(_nothing_exists(file.uri, checked))


@contextmanager
def _read(file: InputFile, options: ReadOptions) -> Iterator[Iterator[list[ListEntry]]]:
    label_column = options.label_column if has_columns(file.uri) else None
    name = file.uri.rpartition("/")[2]
    try:
        with open_input(file.uri) as opened:
            yield read_list(opened, name, file.uri, location_column=options.image_column, label_column=label_column)
    except InputUnreadable as reason:
        raise RequestError(f"{file.uri} can't be read: {reason}.") from None


class _Place(NamedTuple):
    """A file that an entry may name."""

    uri: str
    label: int | None
    is_whole: bool
    """Whether the whole entry is the location."""


class _Found(NamedTuple):
    """An entry and what was found."""

    entry: ListEntry
    file: ListedFile | None
    """None for a header."""
    exists: bool = False
    """Whether the file exists, readable or not."""


class _LookUp:
    """Look up the entries of one list."""

    def __init__(self, list_uri: str) -> None:
        self._list_uri = list_uri
        self._row_name = "row" if list_uri.lower().endswith(".parquet") else "line"
        on_disk = list_uri.startswith("file://")
        self._list_location = local_path(list_uri) if on_disk else "s3://{}/{}".format(*bucket_and_key(list_uri))
        self._real_folder: Callable[[str], str] = lru_cache(_FOLDERS)(real_folder)
        self._whole = self._split = 0
        """Files found under the first and under another reading of an entry with several."""
        self._split_first = False

    def __call__(self, entry: ListEntry) -> _Found:
        """Find the file that an entry names, or the reason why there is none."""
        if entry.reason:
            return self._unusable(entry, entry.reason)
        try:
            return self._find(entry)
        except (RequestError, JobError, OSError):  # of the store or the machine, such as wrong credentials
            raise
        except InvalidDataset as error:
            return self._unusable(entry, f"damaged: {error}")
        except Exception as error:  # noqa: BLE001 (one entry must not stop the others)
            return self._unusable(entry, describe_unexpected(error))

    def learn(self) -> None:
        """Decide, between two batches, whether lines of the list are a path and a label."""
        self._split_first = self._whole == 0 and self._split >= _LABELLED_ENTRIES

    def _find(self, entry: ListEntry) -> _Found:
        location = entry.readings[0].location
        if _SECRET.match(location):
            return self._unusable(entry, "unsupported: the location has a user or password in it")
        if scheme := _OTHER_SCHEME.match(location):
            name = scheme[1].lower()
            reason = f"unsupported: {name} locations can't be read. Copy the files to S3 or to a folder, and list those"
            return self._unusable(entry, reason, possible_uris(location)[0])
        places = self._places(entry)
        denied: dict[str, str] = {}
        for place in places:
            try:
                file = stat_input(place.uri)
            except InputUnreadable as reason:
                denied[place.uri] = str(reason)
                continue
            if file is not None:
                self._count(entry, place)
                kind = container_kind(place.uri) or "image"
                fingerprint = planned_fingerprint(file, kind)
                return _Found(entry, ListedFile(place.uri, fingerprint, kind, file.size, place.label), True)
        return self._not_found(entry, places, denied)

    def _places(self, entry: ListEntry) -> list[_Place]:
        """Return the files that the entry can mean, in order of preference."""
        found: dict[str, _Place] = {}
        for number, (location, label) in enumerate(entry.readings):
            for spelling in dict.fromkeys((location, location.strip())):
                path = resolve(spelling, self._list_location)
                uris = possible_uris(path, resolve_folder=self._real_folder)
                if path.startswith("/") and (decoded := percent_decode(path)) != path:
                    uris += possible_uris(decoded, resolve_folder=self._real_folder)
                for uri in uris:
                    found.setdefault(uri, _Place(uri, label, is_whole=number == 0))
        places = list(found.values())
        return sorted(places, key=lambda place: place.is_whole) if self._split_first else places

    def _count(self, entry: ListEntry, place: _Place) -> None:
        if len(entry.readings) > 1:  # threads may lose a count, which only delays `learn`
            self._whole += place.is_whole
            self._split += not place.is_whole

    def _not_found(self, entry: ListEntry, places: list[_Place], denied: dict[str, str]) -> _Found:
        """Return the entry with the reason why none of the files can be used."""
        if entry.may_be_header:
            return _Found(entry, None)
        likely = next((place for place in places[::-1] if _has_known_ending(place.uri)), places[0])
        if denied:
            place = likely if likely.uri in denied else next(place for place in places if place.uri in denied)
            reason = denied[place.uri]
            return self._unusable(entry, reason, place.uri, place.label, exists=reason.startswith(_REASONS_IF_THERE))
        reason = _why_missing(entry, places)
        if reason:
            return self._unusable(entry, reason, likely.uri, likely.label)
        return _Found(entry, ListedFile(likely.uri, NOT_THERE, "image", 0, likely.label))

    def _unusable(
        self, entry: ListEntry, reason: str, uri: str = "", label: int | None = None, *, exists: bool = False
    ) -> _Found:
        # A fragment would make it a part of the list, of which newer batches replace older rows.
        file = ListedFile(uri or f"{self._list_uri}/{self._row_name}={entry.row}", reason, UNUSABLE, 0, label)
        return _Found(entry, file, exists)


def _has_known_ending(uri: str) -> bool:
    return is_image_name(uri) or container_kind(uri) is not None or uri.lower().endswith(_OTHER_ENDINGS)


def _why_missing(entry: ListEntry, places: list[_Place]) -> str:
    """Return a reason if an entry can't name a file. Empty if its file is just not there."""
    location = entry.readings[0].location.strip()
    if any(_is_folder_on_s3(place.uri) for place in places):
        return FOLDER
    if _FRAGMENT.search(location):
        return "unsupported: it names an image in a container. List the container itself"
    if _WINDOWS.match(location):
        return "unsupported: it is a path of Windows. Write / between folders, and a path of this machine"
    if location.startswith("~"):
        return "vanished: the file did not exist when it was planned. In a list, ~ is not the home folder"
    return ""


def _is_folder_on_s3(uri: str) -> bool:
    if not uri.startswith("s3://") or _GLOB_SIGN.search(uri):
        return False
    try:
        return next(list_input_files(f"{uri.rstrip('/')}/"), None) is not None
    except RequestError:  # the folder doesn't exist, or listing it is denied
        return False


def _nothing_exists(list_uri: str, checked: list[_Found]) -> str:
    count = f"{len(checked):,} entries" if len(checked) > 1 else "one entry"
    which = f"first {count}" if len(checked) == _CHECKED_ENTRIES else count
    examples = [_example(one) for one in checked[:_EXAMPLES]]
    advice = "Relative paths start at the folder of the list."
    if here := next(filter(None, map(_in_working_folder, checked[:_EXAMPLES])), None):
        advice += f" {here} exists: move the list there, or write absolute paths."
    else:
        advice += " Correct the paths, or move the list."
    return f"{list_uri}: none of its {which} names a file that exists: {'; '.join(examples)}. {advice}"


def _example(found: _Found) -> str:
    readings, file = found.entry.readings, found.file
    if file is None or not readings:
        return file.fingerprint if file else ""
    written = readings[0].location.rpartition("@")[2][:_SHOWN]  # what is before the @ may be a password
    if file.kind == UNUSABLE:
        return f"'{written}' ({file.fingerprint})"
    place = local_path(file.uri) if file.uri.startswith("file://") else file.uri
    return f"'{written}' (looked for {place[:_SHOWN]})"


def _in_working_folder(found: _Found) -> str | None:
    """Return the path of the file that an entry would name if the list were in the working folder."""
    for location, _ in found.entry.readings:
        path = Path(location.strip())
        with suppress(OSError, ValueError):
            if path.is_file():
                return str(path.absolute())
    return None
