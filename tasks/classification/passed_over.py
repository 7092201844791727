"""Count what the inputs hold and a run passes over, by kind."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from fmnist_model.images.endings import IMAGE_SUFFIXES, UNSUPPORTED_IMAGE_SUFFIXES

OTHER_ENDING = "other ending"
"""Kind of a file whose ending is too long or too rare to have a kind of its own."""

_ENDING = re.compile(r"\.[\w+-]{1,12}")
_MAX_ENDINGS = 100
"""Endings that are counted one by one. More would need memory without a limit."""
_IMAGE_ENDINGS = IMAGE_SUFFIXES | UNSUPPORTED_IMAGE_SUFFIXES
_MAX_EXAMPLES = 3
_LONGEST_EXAMPLE = 200
_MAX_IN_TEXT = 10
_NOUN = re.compile(r"\b(?:file|folder|link|name|ending|marker|object)(?=$| (?:without|not|in|of|that|named)\b)")
_EXPECTED = re.compile(r"\.|hidden|metadata|folder marker|label file|other ending")
_NOT_A_FILE = re.compile(r"\b(?:folder|link)\b")
_LOCK = Lock()
"""One lock for all counts, because counts have to be pickled. Counting takes less than a microsecond."""


@dataclass(frozen=True)
class PassedOverKind:
    """Files and folders of one kind that were passed over."""

    kind: str
    count: int
    examples: Sequence[str]
    """Up to three paths or URIs. Control characters, and bytes that aren't UTF-8, are escapes."""


class PassedOver:
    """Count of files and folders that are passed over, by kind, in bounded memory.

    A kind is a file's ending in lower case, such as `.docx`, or a singular, such as `hidden file` or `Parquet file
    without images`. Several threads can add to it.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._endings = 0

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Count a file or folder.

        Args:
            kind: its ending, or what it is.
            example: its path or URI. It may hold any character.
            count: number of files that the example stands for.
        """
        with _LOCK:
            self._add(kind, example, count)

    def merge(self, other: "PassedOver") -> None:
        """Add all counts and examples of another collection to this one."""
        for found in other.kinds():
            for number, example in enumerate(found.examples):
                self.add(found.kind, example, 0 if number else found.count)

    def kinds(self) -> list[PassedOverKind]:
        """Return the kinds: image formats that can't be decoded first, then the most frequent first."""
        with _LOCK:
            found = [PassedOverKind(kind, self._counts[kind], (*self._examples[kind],)) for kind in self._counts]
        return sorted(found, key=lambda entry: (entry.kind not in _IMAGE_ENDINGS, -entry.count, entry.kind))

    def faults(self) -> list[PassedOverKind]:
        """Return the kinds that are neither endings, hidden nor metadata, such as folders that can't be read."""
        return [found for found in self.kinds() if not _EXPECTED.match(found.kind)]

    def to_record(self) -> dict[str, int]:
        """Return the counts by kind, as JSON values."""
        return {found.kind: found.count for found in self.kinds()}

    @property
    def total(self) -> int:
        """Number of files and folders."""
        return sum(self._counts.values())

    def text(self) -> str:
        """Return the counts as text, such as `2 files passed over: 1 .heic, 1 .docx`. Empty if there are none."""
        kinds = self.kinds()
        if not kinds:
            return ""
        shown = [_counted(found.kind, found.count) for found in kinds[:_MAX_IN_TEXT]]
        if rest := sum(found.count for found in kinds[_MAX_IN_TEXT:]):
            shown.append(f"{rest:,} others")
        has_others = any(_NOT_A_FILE.search(kind) for kind in self._counts)
        one, several = ("entry", "entries") if has_others else ("file", "files")
        return f"{self.total:,} {one if self.total == 1 else several} passed over: {', '.join(shown)}"

    def _add(self, kind: str, example: str, count: int) -> None:
        if kind not in self._counts:
            is_ending = kind.startswith(".")
            if is_ending and (self._endings == _MAX_ENDINGS or not _ENDING.fullmatch(kind)):
                kind = OTHER_ENDING
            else:
                self._endings += is_ending
        self._counts[kind] = self._counts.get(kind, 0) + count
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(_shown(example))


def _counted(kind: str, count: int) -> str:
    several = _NOUN.sub(lambda noun: f"{noun[0]}s", kind, count=1)
    return f"{count:,} {kind if count == 1 else several}"


def _shown(text: str) -> str:
    """Return a path on one line, with escapes. Cut off its start if it is long, because its end says more."""
    shown = "".join(letter if letter.isprintable() else _escape(letter) for letter in text)
    return shown if len(shown) <= _LONGEST_EXAMPLE else f"…{shown[1 - _LONGEST_EXAMPLE :]}"


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte of a name that isn't UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()
