"""Measure the memory that a worker needs for files that are made to need much of it.

    python -m tests.benchmarks.memory_bombs

Each file is read or decoded in a process of its own. `mib` is the process's peak, less what it took before, in MiB. The
files are those of the tests, which also check that each one is decoded or refused. The results are written to
tests/benchmarks/results/memory_bombs.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tests.unit.fmnist_model.formats import test_memory as containers
from tests.unit.fmnist_model.images import test_memory as images

RESULTS = Path(__file__).parent / "results" / "memory_bombs.json"

CONTAINERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "Parquet: one value of 24 MiB, in 64 rows": (containers.one_value_64_times, "parquet"),
    "Parquet: a dictionary that 64 rows share": (containers.shared_dictionary, "parquet"),
    "Parquet: values that repeat the one before": (containers.repeated_prefix, "parquet"),
    "Parquet: labels of 24 MiB": (containers.large_labels_of_fixed_size, "parquet"),
    "Parquet: a page of 1 GiB": (containers.large_page, "parquet"),
    "Parquet: a value of 300 MiB": (containers.large_value, "parquet"),
    "Parquet: large images among small ones": (containers.large_images_among_small_ones, "parquet"),
    "Parquet: a list of 150 million numbers": (containers.long_list, "parquet"),
    "tar.gz: a member of 1 GiB": (containers.large_member, "tar"),
    "gzipped IDX: 1 GiB of pictures": (containers.zeros_in_idx, "idx"),
}


def measure(make: Callable[[Path], None], program: str, *arguments: str) -> list[str]:
    """Make a file, and return what the program prints about it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bomb"
        make(file)
        command = [sys.executable, "-c", program, str(file), *arguments]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [part.strip() for part in printed.replace("\n", ",").split(",")]


def write(make: Callable[[], bytes], file: Path) -> None:
    """Write an image file."""
    file.write_bytes(make())


def main() -> None:
    """Measure each file, print a table, and write the results."""
    found = []
    for name, (make, kind) in CONTAINERS.items():
        mib, _, *reasons = measure(make, containers.PROGRAM, kind)
        found.append({"file": name, "mib": int(mib), "outcome": ", ".join(filter(None, reasons)) or "read"})
    for name, encode in images.BOMBS.items():
        outcome, *_, mib, _ = measure(partial(write, encode), images.CODE)
        found.append({"file": name, "mib": int(mib), "outcome": outcome.partition(":")[0]})
    for entry in found:
        print(f"| {entry['file']} | {entry['outcome']} | {entry['mib']:,} |")
    about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count(), "files": found}
    RESULTS.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
