"""Measure the forward pass alone on raw pixels in memory, and the cost of each other stage of an actor.

Two processes run with one thread each, as the actors do. The module prints one line of JSON. It holds the images per
second of both processes together when they only classify. It also holds the microseconds per image of each stage,
measured in sequence in one process.

    python -m tests.benchmarks.peers.forward_alone FILE [--processes 2]
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

SECONDS = 5.0


def forward_alone(_: int) -> float:
    """Return the images per second of one thread."""
    import numpy as np
    import torch

    from fmnist_model.classifier import Classifier
    from fmnist_model.network import NeuralNetwork

    torch.set_num_threads(1)
    classifier = Classifier(NeuralNetwork(), torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 28, 28), dtype=np.uint8)
    classifier.classify(pixels)
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        classifier.classify(pixels)
        images += len(pixels)
    return images / (time.perf_counter() - began)


def stages(file: Path) -> dict[str, float]:
    """Return the microseconds per image of each stage of an actor on a Parquet file of raw pixels."""
    import pyarrow as pa
    import torch

    from fmnist_model.classifier import Classifier
    from fmnist_model.images.decode import decode_images
    from fmnist_model.network import NeuralNetwork
    from fmnist_model.predictions import prediction_batch, prediction_schema
    from infra.storage.object_store import open_store
    from infra.storage.tables.parts import open_part
    from tasks.classification.inputs import list_files, pieces_of
    from tasks.classification.options import ReadOptions
    from tasks.classification.read import read_shard

    torch.set_num_threads(1)
    classifier = Classifier(NeuralNetwork(), torch.device("cpu"))
    options = ReadOptions()
    inputs = pa.Table.from_batches(pieces_of(list_files([str(file)], options), options))
    spent = dict.fromkeys(("read", "decode", "classify", "write"), 0.0)
    images = 0
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"file://{folder}")
        for repetition in range(4):
            if repetition == 1:  # the first one warms up
                images, spent = 0, dict.fromkeys(spent, 0.0)
            with open_part(store, "predictions", f"part-{repetition}.parquet", prediction_schema()) as part:
                batches = read_shard(inputs, options)
                while True:
                    at = [time.perf_counter()]
                    batch = next(batches, None)
                    if batch is None:
                        break
                    at.append(time.perf_counter())
                    decoded = decode_images(batch.encoded)
                    at.append(time.perf_counter())
                    predictions = classifier.classify(decoded.pixels)
                    at.append(time.perf_counter())
                    part.write(
                        prediction_batch(batch.images, predictions, batch.labels, file_version=1, model_version="1")
                    )
                    at.append(time.perf_counter())
                    for name, (began, ended) in zip(spent, pairwise(at), strict=True):
                        spent[name] += ended - began
                    images += len(batch.images)
                began = time.perf_counter()
            spent["write"] += time.perf_counter() - began
    return {name: round(seconds / images * 1e6, 2) for name, seconds in spent.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"stages": stages(arguments.file)}
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        result["images_per_second"] = sum(pool.map(forward_alone, range(arguments.processes)))
    print(json.dumps(result))
