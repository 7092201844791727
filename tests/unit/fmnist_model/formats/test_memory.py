"""Whatever a container holds, reading it takes bounded memory. Each file is read in a process of its own."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow  # one process for each file, and some files are large

MIB = 2**20
PROGRAM = """
import sys
from pathlib import Path
import pyarrow as pa
from fmnist_model.formats import pieces, read
path, kind = sys.argv[1:]
def peak():  # in MiB. Not `ru_maxrss`, which a process inherits from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
before, images, reasons = peak(), 0, set()
with pa.OSFile(path) as file:
    for piece in pieces(kind, file, "x", target_rows=20_000, target_bytes=2**28):
        for batch in read(kind, file, "x", piece, batch_rows=4096):
            images += len(batch.encoded)
            reasons |= {reason.partition(":")[0] for reason in batch.reasons.values()}
print(peak() - before, images, *sorted(reasons), sep=", ")
"""


def image(size: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(size)


def save_table(path: Path, images: pa.Array, labels: pa.Array | None = None, **options: Any) -> None:
    columns = {"image": images} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns), path, compression="zstd", **options)


def repeated(value: Any, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value]))


def one_value_64_times(path: Path) -> None:
    save_table(path, repeated(image(24 * MIB), 64))


def shared_dictionary(path: Path) -> None:
    save_table(path, repeated(image(24 * MIB), 64), store_schema=False)


def repeated_prefix(path: Path) -> None:
    save_table(path, pa.array([image(24 * MIB)] * 44), use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")


def large_page(path: Path) -> None:
    save_table(path, pa.array([image(24 * MIB)] * 44), use_dictionary=False)


def large_labels_of_fixed_size(path: Path) -> None:
    save_table(path, pa.array([image(1)] * 64), pa.array([bytes(24 * MIB)] * 64, pa.binary(24 * MIB)))


def large_value(path: Path) -> None:
    save_table(path, pa.array([b"x", image(300 * MIB), b"y"]), use_dictionary=False)


def large_images_among_small_ones(path: Path) -> None:
    images = [b"x"] * 5000 + [image(12 * MIB)] * 40
    save_table(path, pa.array(images), use_dictionary=False, write_batch_size=16)


def large_labels(path: Path) -> None:
    save_table(path, pa.array([image(1)] * 64), repeated("x" * (100 * MIB), 64))


def long_list(path: Path) -> None:
    save_table(path, pa.array([np.zeros(150_000_000, np.uint8)], pa.list_(pa.uint8())))


def large_member(path: Path) -> None:
    """Write a gzipped tar with a member of 1 GiB between two small ones."""
    with gzip.open(path, "wb", 1) as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for number, size in enumerate((100, 1024 * MIB, 100)):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = size
            archive.addfile(member, _Zeros(size))


def zeros_in_idx(path: Path) -> None:
    """Write a gzipped IDX file with 1 GiB of black pictures."""
    count = 1024 * MIB // 784
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 28, 28))
        for _ in range(count // 1000):
            file.write(bytes(784_000))
        file.write(bytes(count % 1000 * 784))


class _Zeros(io.RawIOBase):
    """A file of zeros."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        self._left -= size
        return bytes(size)


@pytest.mark.parametrize(
    ("make", "kind", "images", "reasons"),
    [
        (one_value_64_times, "parquet", 64, []),
        (shared_dictionary, "parquet", 64, []),
        (repeated_prefix, "parquet", 44, []),
        (large_labels_of_fixed_size, "parquet", 64, []),
        (large_page, "parquet", 44, ["too large"]),
        (large_value, "parquet", 3, ["too large"]),
        (large_images_among_small_ones, "parquet", 5040, []),
        (large_labels, "parquet", 64, []),
        (long_list, "parquet", 1, ["too large"]),
        (large_member, "tar", 3, ["too large"]),
        (zeros_in_idx, "idx", 1024 * MIB // 784, []),
    ],
)
def test_reading_takes_less_than_a_gibibyte(
    make: Callable[[Path], None], kind: str, images: int, reasons: list[str], tmp_path: Path
):
    make(tmp_path / "bomb")
    assert (tmp_path / "bomb").stat().st_size < 16 * MIB
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "bomb"), kind]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    assert [*output[1:]] == [str(images), *reasons]
    assert int(output[0]) < 1024
