"""What every kind of list produces: entries, with their labels parsed."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from fmnist_model.formats.labels import parse_labels

BATCH_ENTRIES = 10_000
"""Entries parsed at a time."""

MAX_LOCATION_BYTES = 8192
"""A path on Linux has at most 4,096 bytes, and a key on S3 1,024. Percent-encoding can triple them."""


class Reading(NamedTuple):
    """One meaning of an entry."""

    location: str
    """URI or path as written in the list. `resolve` makes a path absolute."""
    label: int | None = None
    """Class, 0 to 9, or None if unknown."""


class ListEntry(NamedTuple):
    """One entry of a list."""

    row: int
    """Number of its line, from 1. In a Parquet list, number of its row, from 0."""
    readings: tuple[Reading, ...] = ()
    """What the entry can mean, in order of preference. The first whose file exists counts. Empty if it is unusable."""
    reason: str = ""
    """Why the entry is unusable, as a reason for quarantine, such as `damaged: …`. Empty if it isn't."""
    may_be_header: bool = False
    """Whether the entry is a header if it names no file."""


class RawEntry(NamedTuple):
    """A `ListEntry` whose labels are still texts."""

    row: int
    readings: tuple[tuple[str, str | None], ...] = ()
    reason: str = ""
    may_be_header: bool = False


def damaged(row: int, problem: str) -> RawEntry:
    """Return the entry for a line that can't be parsed."""
    return RawEntry(row, reason=f"damaged: line {row:,} of the list {_one_line(problem)}")


def missing(row: int, place: str, problem: str = "has no location") -> RawEntry:
    """Return the entry for a line or row without a location. `place` is `line` or `row`."""
    return RawEntry(row, reason=f"missing: {place} {row:,} of the list {_one_line(problem)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def parsed(entries: Iterable[RawEntry], origin: str) -> Iterator[list[ListEntry]]:
    """Parse the labels of entries, and check their locations, in batches. `origin` is the list's URI, for log lines."""
    remaining = iter(entries)
    while batch := list(islice(remaining, BATCH_ENTRIES)):
        texts = [label for entry in batch for _, label in entry.readings]
        labels = iter(_parse(texts, origin))
        yield [
            checked(entry, tuple(Reading(location, next(labels)) for location, _ in entry.readings)) for entry in batch
        ]


def checked(entry: RawEntry, readings: tuple[Reading, ...]) -> ListEntry:
    """Return an entry, without its readings if its location can't be one."""
    reason = entry.reason
    for location, _ in readings[:1]:  # the others are parts of the first
        reason = reason or _problem(location, entry.row)
    return ListEntry(entry.row, () if reason else readings, reason, entry.may_be_header)


def _problem(location: str, row: int) -> str:
    if not location.strip():
        return f"missing: entry {row:,} of the list has no location"
    if "\0" in location:
        return f"damaged: entry {row:,} of the list contains a NUL character"
    try:
        size = len(location.encode())
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        return f"damaged: entry {row:,} of the list isn't Unicode"
    if size > MAX_LOCATION_BYTES:
        return f"damaged: entry {row:,} of the list has a location of more than {MAX_LOCATION_BYTES:,} bytes"
    return ""


def _parse(texts: list[str | None], origin: str) -> list[int | None]:
    if not any(texts):
        return [None] * len(texts)
    labels: list[int | None] = parse_labels(pa.array(texts, pa.string()), origin=origin).to_pylist()
    return labels
