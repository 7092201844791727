"""Classify a batch as Ray Data's guide shows, which is what you would write without this project.

The pipeline is `read_parquet`, `map_batches` with an actor that decodes and predicts, and `write_parquet`
(https://docs.ray.io/en/latest/data/batch_inference.html). The module prints one line of JSON. Its seconds exclude
`ray.init`.

    python -m tests.benchmarks.peers.ray_data IMAGES OUT [--cpus 2]
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import ray
import torch
from torchvision.io import ImageReadMode, decode_image


class Predictor:
    """The guide's actor, which loads the model once and is called with batches."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        layers = [torch.nn.Linear(784, 512), torch.nn.Linear(512, 512), torch.nn.Linear(512, 10)]
        relu = torch.nn.ReLU()
        self.network = torch.nn.Sequential(torch.nn.Flatten(), layers[0], relu, layers[1], relu, layers[2]).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.stack(
            [
                decode_image(torch.frombuffer(bytearray(image["bytes"]), dtype=torch.uint8), ImageReadMode.GRAY)
                for image in batch["image"]
            ]
        )
        with torch.inference_mode():
            probabilities = self.network(pixels.float().div_(255)).softmax(1).numpy()
        return {
            "path": np.array([image["path"] for image in batch["image"]], dtype=object),
            "predicted_class": probabilities.argmax(1),
            "probabilities": probabilities,
        }


def main() -> None:
    """Classify and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()

    ray.init(num_cpus=arguments.cpus, log_to_driver=False)
    began = time.perf_counter()
    images = ray.data.read_parquet(arguments.images)
    compute = ray.data.ActorPoolStrategy(min_size=1, max_size=arguments.cpus)
    images.map_batches(Predictor, batch_size=2048, compute=compute).write_parquet(arguments.out)
    seconds = time.perf_counter() - began
    count = ray.data.read_parquet(arguments.out).count()
    print(json.dumps({"images": count, "seconds": seconds, "images_per_second": count / seconds}))


if __name__ == "__main__":
    main()
