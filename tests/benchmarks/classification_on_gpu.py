"""Compare `fmnist_model`'s classifier on raw pixels with a plain PyTorch loop, on one GPU.

    python -m tests.benchmarks.classification_on_gpu [--images 4000000] [--runs 3] [--idx FOLDER]

The pixels are in memory, and the predictions end up there as NumPy arrays. The plain loop copies each batch to the GPU,
runs the forward pass and the softmax, and copies the outputs back. A third measurement runs the forward pass alone on
pixels that are already on the GPU. It shows how much of the plain loop's time is copying. --idx names a folder with the
data set's four IDX files. With it, you need only PyTorch, NumPy and Arrow. The results are written to
tests/benchmarks/results/classification_on_gpu.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmnist_model.classifier import Classifier
from fmnist_model.network import NeuralNetwork
from fmnist_model.training.augmentation import scale
from tests.benchmarks.accuracy import fashion_mnist

RESULTS = Path(__file__).parent / "results" / "classification_on_gpu.json"
GPU = torch.device("cuda")
BATCHES = (4_096, 65_536)
"""Images per call: an actor's read batch, and one pass of the classifier."""


def rate(images: int, work: Callable[[], Any]) -> float:
    """Return the throughput in images per second."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return images / (time.perf_counter() - began)


def measure(pixels: NDArray[np.uint8], batch: int) -> dict[str, float]:
    """Measure the classifier, the plain loop and the forward pass alone in turn, in images per second."""
    torch.manual_seed(0)
    network = NeuralNetwork().to(GPU).eval()
    classifier = Classifier(network, GPU)
    parts = [pixels[first : first + batch] for first in range(0, len(pixels), batch)]
    there = [torch.from_numpy(part).to(GPU) for part in parts[: max(1, 2**30 // (784 * batch))]]

    def classify() -> None:
        for part in parts:
            classifier.classify(part)

    def plain() -> None:
        with torch.inference_mode():
            for part in parts:
                probabilities = network(scale(torch.from_numpy(part).to(GPU))).softmax(1)
                probabilities.argmax(1).cpu().numpy(), probabilities.cpu().numpy()

    def forward() -> None:
        with torch.inference_mode():
            for part in there:
                network(scale(part)).softmax(1)

    for warm_up in (classify, plain, forward):
        warm_up()
    return {
        "classifier": rate(len(pixels), classify),
        "plain_loop": rate(len(pixels), plain),
        "forward_alone": rate(sum(map(len, there)), forward),
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--idx")
    arguments = parser.parse_args()
    test = fashion_mnist(arguments.idx)[1].images
    pixels = np.resize(test, (arguments.images, *test.shape[1:]))
    found: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": torch.cuda.get_device_name(),
        "images": arguments.images,
    }
    for batch in BATCHES:
        runs = [measure(pixels, batch) for _ in range(arguments.runs)]
        found[f"batches of {batch:,}"] = {name: round(statistics.median(run[name] for run in runs)) for name in runs[0]}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
