"""Measure the practical limit: one plain process per CPU reads, decodes, predicts and writes.

The module prints one line of JSON: images per second from the moment when every process has loaded its libraries and
its model.

    python -m tests.benchmarks.peers.bare_loop IMAGES OUT [--cpus 2]
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.processes import run_together

BATCH = 4096


def classify(files: list[Path], out: Path, queues: tuple[Any, Any, Any]) -> None:
    """Classify Parquet files in sequence, each into its own file. `queues` holds ready, go and done."""
    import pyarrow.parquet as pq
    import torch

    torch.set_num_threads(1)
    layers = [torch.nn.Linear(784, 512), torch.nn.Linear(512, 512), torch.nn.Linear(512, 10)]
    relu = torch.nn.ReLU()
    network = torch.nn.Sequential(torch.nn.Flatten(), layers[0], relu, layers[1], relu, layers[2]).eval()
    ready, go, done = queues
    ready.put(True)
    go.wait()
    images = 0
    for file in files:
        with pq.ParquetFile(file) as parquet:
            writer = None
            for batch in parquet.iter_batches(BATCH, columns=["image"]):
                table = _classified(batch.column("image"), network, f"{file.name}#", images)
                writer = writer or pq.ParquetWriter(
                    out / file.name, table.schema, compression="zstd", use_dictionary=False
                )
                writer.write_table(table)
                images += len(table)
            if writer:
                writer.close()
    done.put(images)


def _classified(column: Any, network: Any, prefix: str, first: int) -> Any:
    import numpy as np
    import pyarrow as pa
    import torch

    if pa.types.is_struct(column.type):
        names, pixels = column.field("path"), _decoded(column.field("bytes"))
    else:
        names = pa.array([f"{prefix}{first + row}" for row in range(len(column))])
        size = 784
        pixels = np.frombuffer(column.buffers()[1], np.uint8)[
            column.offset * size : (column.offset + len(column)) * size
        ]
    with torch.inference_mode():
        scaled = torch.from_numpy(np.require(pixels.reshape(-1, 28, 28), requirements="W")).float().div_(255)
        probabilities = network(scaled).softmax(1).numpy()
    return pa.table(
        {
            "image": names,
            "predicted_class": probabilities.argmax(1).astype(np.int8),
            "confidence": probabilities.max(1),
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities.reshape(-1)), 10),
        }
    )


def _decoded(encoded: Any) -> Any:
    import numpy as np
    from imagecodecs import png_decode

    offsets = np.frombuffer(encoded.buffers()[1], np.int32)[encoded.offset : encoded.offset + len(encoded) + 1]
    data = memoryview(encoded.buffers()[2]).cast("B")
    pixels = np.empty((len(encoded), 28, 28), np.uint8)
    for row, (begin, end) in enumerate(pairwise(offsets)):
        png_decode(data[begin:end], out=pixels[row])
    return pixels


def main() -> None:
    """Run the processes and print their result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    files = sorted(arguments.images.glob("*.parquet"))
    run_together(classify, [(files[number :: arguments.cpus], arguments.out) for number in range(arguments.cpus)])


if __name__ == "__main__":
    main()
