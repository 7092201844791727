"""Measure the practical limit for loose files: one plain process per CPU reads, decodes, predicts and writes.

Each process keeps a fixed number of reads in flight. The module prints one line of JSON: images per second from the
moment when every process has loaded its libraries and its model.

    python -m tests.benchmarks.peers.bare_files FOLDER_OR_S3_PREFIX OUT [--cpus 2] [--in-flight 16]
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.processes import run_together

BATCH = 4096


def classify(names: list[str], out: Path, in_flight: int, queues: tuple[Any, Any, Any]) -> None:
    """Classify files into one Parquet file. `queues` holds ready, go and done."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from imagecodecs import png_decode

    ready, go, done = queues
    torch.set_num_threads(1)
    layers = [torch.nn.Linear(784, 512), torch.nn.Linear(512, 512), torch.nn.Linear(512, 10)]
    relu = torch.nn.ReLU()
    network = torch.nn.Sequential(torch.nn.Flatten(), layers[0], relu, layers[1], relu, layers[2]).eval()
    read = reader(names[0])
    ready.put(True)
    go.wait()
    writer = None
    with ThreadPoolExecutor(in_flight) as threads:
        for first in range(0, len(names), BATCH):
            some = names[first : first + BATCH]
            pixels = np.empty((len(some), 28, 28), np.uint8)
            for row, data in enumerate(threads.map(read, some)):
                png_decode(data, out=pixels[row])
            with torch.inference_mode():
                probabilities = network(torch.from_numpy(pixels).float().div_(255)).softmax(1).numpy()
            table = pa.table(
                {
                    "image": some,
                    "predicted_class": probabilities.argmax(1).astype(np.int8),
                    "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities.reshape(-1)), 10),
                }
            )
            writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
            writer.write_table(table)
    if writer:
        writer.close()
    done.put(len(names))


def reader(name: str) -> Any:
    """Return the function that reads a file by path or S3 URI."""
    if not name.startswith("s3://"):
        return lambda path: Path(path).read_bytes()
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=64))
    bucket = name.split("/")[2]
    return lambda uri: client.get_object(Bucket=bucket, Key=uri.split("/", 3)[3])["Body"].read()


def listed(location: str) -> list[str]:
    """List the files in a folder or below a prefix."""
    if not location.startswith("s3://"):
        return sorted(str(path) for path in Path(location).iterdir())
    import boto3

    bucket, prefix = location.removeprefix("s3://").split("/", 1)
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [f"s3://{bucket}/{found['Key']}" for page in pages for found in page["Contents"]]


def main() -> None:
    """Run the processes and print their result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("location")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--in-flight", type=int, default=16)
    arguments = parser.parse_args()

    names = listed(arguments.location)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shares = [
        (names[number :: arguments.cpus], arguments.out / f"{number}.parquet", arguments.in_flight)
        for number in range(arguments.cpus)
    ]
    run_together(classify, shares)


if __name__ == "__main__":
    main()
