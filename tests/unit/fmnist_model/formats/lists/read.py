"""Read small lists in tests."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from fmnist_model.formats.lists import ListEntry, read_list

ORIGIN = "s3://bucket/list"


def entries(data: bytes | str, name: str = "list.txt", **columns: Any) -> list[ListEntry]:
    """Return the entries of a list."""
    file = pa.BufferReader(data.encode() if isinstance(data, str) else data)
    return [entry for batch in read_list(file, name, ORIGIN, **columns) for entry in batch]


def firsts(data: bytes | str, name: str = "list.txt", **columns: Any) -> list[tuple[str, int | None]]:
    """Return the preferred location and label of each entry. All entries must be usable."""
    found = entries(data, name, **columns)
    assert [entry.reason for entry in found if entry.reason] == []
    return [(entry.readings[0].location, entry.readings[0].label) for entry in found]


def lasts(data: bytes | str, name: str = "list.txt", **columns: Any) -> list[tuple[str, int | None]]:
    """Return the last location and label of each entry. All entries must be usable."""
    found = entries(data, name, **columns)
    assert [entry.reason for entry in found if entry.reason] == []
    return [(entry.readings[-1].location, entry.readings[-1].label) for entry in found]


def locations(data: bytes | str, name: str = "list.txt") -> list[str]:
    """Return the preferred location of each entry."""
    return [location for location, _ in firsts(data, name)]


def reasons(data: bytes | str, name: str = "list.txt", **columns: Any) -> dict[int, str]:
    """Return the kind of reason of each unusable entry, by its row."""
    return {entry.row: entry.reason.partition(":")[0] for entry in entries(data, name, **columns) if entry.reason}


def peak_memory(path: Path) -> tuple[int, int]:
    """Read a list in a process of its own. Return the number of entries, and the memory it took at most, in MiB."""
    program = f"""
import re
from pathlib import Path
import pyarrow as pa
from fmnist_model.formats.lists import read_list

def peak():  # getrusage would count the memory of the process that started this one
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

before = peak()
with pa.OSFile({str(path)!r}) as file:
    count = sum(len(batch) for batch in read_list(file, {path.name!r}, "x"))
print(count, peak() - before)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    count, mebibytes = map(int, output.split())
    return count, mebibytes
