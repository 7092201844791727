"""Compare the S3 throughput of the object store with that of plain boto3 for the same bytes.

    eval "$(make -s s3-up)"
    python -m tests.benchmarks.object_store [--runs 15]

Each run does every operation once with the store and once with boto3's `upload_file` or `download_file`. The order
changes from run to run, so other load on the machine affects both equally. The store's time includes its verification:
it compares what it reads with its SHA-256, as it does for a checkpoint's files. Each ratio is the median of the ratios
of the runs. The results are written to tests/benchmarks/results/object_store.json.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import load_settings
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.object_store.s3_configuration import s3_connection

RESULTS = Path(__file__).parent / "results" / "object_store.json"
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Pair:
    """The same bytes moved by the store and by boto3."""

    name: str
    size: int
    """Size in bytes."""
    store: Callable[[], None]
    boto3: Callable[[], None]


class Workload:
    """The operations to measure, in a scratch folder of the store."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._key = f"scratch/{uuid4().hex}"
        self._bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._count = 0
        # A default client, except for AWS_REQUEST_CHECKSUM_CALCULATION from the environment, which Ceph needs.
        s3_connection()
        self._plain = boto3.client("s3")

    def pairs(self) -> list[Pair]:
        """Return checkpoints (weights, then optimizer state), one large object, and a table of predictions."""
        pairs = []
        for name, size in (("weights", int(2.7 * MEBIBYTE)), ("trainer state", 8 * MEBIBYTE)):
            data = random.Random(size).randbytes(size)  # noqa: S311 (chance, not secrets)
            file = self._file(name, data)
            pairs.append(Pair(f"create {name}", size, self._creating(data), self._uploading(file)))
            pairs.append(Pair(f"read {name}", size, self._reading(name, data), self._downloading(name)))
        data = random.Random(64).randbytes(64 * MEBIBYTE)  # noqa: S311
        pairs.append(Pair("publish", len(data), self._publishing(data), self._uploading(self._file("large", data))))
        return pairs + self._parquet_pairs()

    def clean(self) -> None:
        """Remove what the runs wrote."""
        for found in list(self._store.list(f"{self._key}/")):
            self._store.delete(found.key)

    def _parquet_pairs(self) -> list[Pair]:
        rows = 1_000_000
        numbers = random.Random(rows)  # noqa: S311
        table = pa.table(
            {
                "image": [f"file:///images/{number:08d}.png" for number in range(rows)],
                "probabilities": pa.FixedSizeListArray.from_arrays(
                    pa.array(memoryview(numbers.randbytes(rows * 4)).cast("B"), pa.uint8()), 4
                ),
            }
        )
        local = self._folder / "table.parquet"
        pq.write_table(table, local, compression="none")
        size = local.stat().st_size
        key = f"{self._key}/table.parquet"

        def write() -> None:
            with self._store.publish(key) as stream:
                pq.write_table(table, stream, compression="none")

        def write_and_upload() -> None:
            # boto3's file also comes from pyarrow, so that both do the same work.
            pq.write_table(table, local, compression="none")
            self._plain.upload_file(str(local), self._bucket, self._prefix + key)

        def read() -> None:
            filesystem, path = self._store.arrow(key)
            assert pq.read_table(path, filesystem=filesystem).num_rows == rows

        def download_and_read() -> None:
            target = self._folder / "downloaded.parquet"
            self._plain.download_file(self._bucket, self._prefix + key, str(target))
            assert pq.read_table(target).num_rows == rows

        write()
        return [
            Pair("write Parquet", size, write, write_and_upload),
            Pair("read Parquet", size, read, download_and_read),
        ]

    def _file(self, name: str, data: bytes) -> Path:
        (self._folder / name).write_bytes(data)
        self._store.create(f"{self._key}/{name}", data)
        return self._folder / name

    def _fresh_key(self) -> str:
        self._count += 1
        return f"{self._key}/{self._count:06d}"

    def _creating(self, data: bytes) -> Callable[[], None]:
        return lambda: self._store.create(self._fresh_key(), data)

    def _publishing(self, data: bytes) -> Callable[[], None]:
        def publish() -> None:
            with self._store.publish(self._fresh_key()) as stream, memoryview(data) as view:
                for start in range(0, len(data), MEBIBYTE):
                    stream.write(view[start : start + MEBIBYTE])

        return publish

    def _uploading(self, file: Path) -> Callable[[], None]:
        return lambda: self._plain.upload_file(str(file), self._bucket, self._prefix + self._fresh_key())

    def _reading(self, name: str, data: bytes) -> Callable[[], None]:
        sha256 = hashlib.sha256(data).hexdigest()

        def read() -> None:
            assert hashlib.sha256(self._store.read(f"{self._key}/{name}")).hexdigest() == sha256

        return read

    def _downloading(self, name: str) -> Callable[[], None]:
        target = str(self._folder / "downloaded")
        key = f"{self._prefix}{self._key}/{name}"
        return lambda: self._plain.download_file(self._bucket, key, target)


def seconds_of(work: Callable[[], None]) -> float:
    """Return the wall-clock seconds of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(pair: Pair, runs: int) -> dict[str, Any]:
    """Return the median throughput of both and the median ratio, after one warm-up run."""
    seconds: dict[str, list[float]] = {"store": [], "boto3": []}
    for run in range(runs + 1):
        sides = [("store", pair.store), ("boto3", pair.boto3)]
        for name, work in sides if run % 2 else reversed(sides):
            taken = seconds_of(work)
            if run:
                seconds[name].append(taken)
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["store"], seconds["boto3"], strict=True))
    megabytes = pair.size / 1e6
    return {
        "bytes": pair.size,
        "store_megabytes_per_second": round(megabytes / statistics.median(seconds["store"]), 1),
        "boto3_megabytes_per_second": round(megabytes / statistics.median(seconds["boto3"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(quartile, 3) for quartile in statistics.quantiles(ratios, n=4)[::2]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    settings = load_settings()
    if not settings.store.startswith("s3://"):
        parser.error("set FMNIST_STORE to an s3:// root: make s3-up starts a server and says how")
    store = open_store(settings.store)

    results: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpus": os.cpu_count(),
        "runs": arguments.runs,
        "endpoint": s3_connection().endpoint,
    }
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(store, Path(folder))
        try:
            results["operations"] = {pair.name: measure(pair, arguments.runs) for pair in workload.pairs()}
        finally:
            workload.clean()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
