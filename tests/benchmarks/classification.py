"""Compare classification with Ray Data, used as its guide shows, and with a bare loop.

    python -m tests.benchmarks.classification [--files 60] [--layout png] [--runs 3] [--without-ray-data]

Every file holds Fashion-MNIST's 10,000 test images. Each run is a separate process, and the compared programs take
turns. All values are medians. The results are added to tests/benchmarks/results/classification.json, by layout and
number of files.

`job` is the throughput in images per second. It includes the start of the actors but not the start of Ray, and the same
holds for Ray Data. `steady` is the throughput from the end of the first shard to the end of the last.
`orchestration_seconds` is the flow's time minus the time of its task on Ray.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

RESULTS = Path(__file__).parent / "results" / "classification.json"


def make_images(folder: Path, files: int, layout: str) -> None:
    """Write the data set: `png` in the Hugging Face layout, `pixels` as `fixed_size_binary[784]`."""
    from fmnist_model.images.decode import encode_png
    from infra.settings import Settings
    from infra.storage.datasets import read_dataset
    from infra.storage.object_store import open_store
    from tasks.dataset import NAME, import_dataset
    from tasks.training.splits import load_split

    settings = Settings(store="var/test-data")
    store = open_store(settings.store)
    dataset = read_dataset(store, NAME) or import_dataset(store, settings)
    split = load_split(store, dataset, "test")
    pixels, labels = split.images, split.labels
    encoded = [encode_png(image) for image in pixels] if layout == "png" else []
    folder.mkdir(parents=True)
    for number in range(files):
        if layout == "png":
            rows = [{"bytes": data, "path": f"{number:04d}/{row:05d}.png"} for row, data in enumerate(encoded)]
        else:
            rows = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(784), len(pixels), [None, pa.py_buffer(pixels.tobytes())]
            )
        pq.write_table(pa.table({"image": rows, "label": labels}), folder / f"{number:04d}.parquet")


def make_model(store_root: str) -> None:
    """Register a network with random weights, which is as fast as a trained one."""
    import torch

    from fmnist_model.network import NeuralNetwork, save_weights
    from infra.storage.checkpoints import write_checkpoint
    from infra.storage.model_registry import ModelRegistry
    from infra.storage.object_store import open_store

    torch.manual_seed(0)
    store = open_store(store_root)
    checkpoint = write_checkpoint(
        store,
        run_id="benchmark",
        epoch=1,
        files={"model.safetensors": save_weights(NeuralNetwork())},
        metrics={"loss": 1.0},
        parameters={},
        data_version="none",
    )
    registry = ModelRegistry(store)
    version = registry.register(
        run_id="benchmark",
        epoch=1,
        weights_sha256=checkpoint.files[0].sha256,
        metrics={"test_accuracy": 0.1},
        parameters={},
        data_version="none",
    )
    registry.point("champion", version.version)


class MemoryWatch:
    """Sample the classifying actor with the most memory four times a second during the block."""

    actor_mib = 0.0

    def __enter__(self) -> "MemoryWatch":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.25):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.name().startswith("ray::ShardClass"):
                        self.actor_mib = max(self.actor_mib, process.memory_info().rss / 2**20)


def run_ours(images: str, table: str) -> None:
    """Run the flow in this process and print its results."""
    from flows.cli.services import prepare_environment, services

    prepare_environment()
    import flows.classify
    from flows.parameters import ClassifyParameters
    from infra.settings import load_settings

    classify_shards, spent = flows.classify.classify_shards, []
    batches: list[Any] = []

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        batches.extend(classify_shards(*arguments))
        spent.append(time.perf_counter() - began)
        return batches

    setattr(flows.classify, "classify_shards", timed)  # noqa: B010 (a task has another type)
    with services(load_settings()), MemoryWatch() as memory:
        began = time.perf_counter()
        summary = flows.classify.classify(ClassifyParameters(inputs=[images], table=table))
        seconds = time.perf_counter() - began
    count = sum(books.predicted for books in summary.batches)
    figures = {
        "images": count,
        "job": count / spent[0],
        "flow": count / seconds,
        "from_first_actor": count / batches[0].seconds,
        "steady": batches[0].steady_images_per_second,
        "orchestration_seconds": seconds - spent[0],
        "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "actor_mib": memory.actor_mib,
    }
    print(json.dumps(figures))


def last_json(*command: str | Path, **environment: str) -> dict[str, Any]:
    """Run a Python module and parse the last JSON object that it prints. Ray may print more after it."""
    found = subprocess.run(
        [sys.executable, "-m", *command], env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, Any] = json.loads([line for line in found.stdout.splitlines() if line.startswith("{")][-1])
    return figures


def main() -> None:
    """Measure and add to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--layout", choices=["png", "pixels"], default="png")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--without-ray-data", action="store_true")
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        run_ours(*arguments.ours)
        return

    ours, bare, ray_data, forward = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        make_images(images, arguments.files, arguments.layout)
        settings = {"FMNIST_STORE": f"{folder}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
        make_model(f"file://{folder}/store")
        for number in range(arguments.runs):
            bare.append(last_json("tests.benchmarks.peers.bare_loop", images, f"{folder}/bare-{number}"))
            ours.append(last_json("tests.benchmarks.classification", "--ours", images, f"table-{number}", **settings))
            if arguments.layout == "png" and not arguments.without_ray_data:
                ray_data.append(last_json("tests.benchmarks.peers.ray_data", images, f"{folder}/ray-{number}"))
            if arguments.layout == "pixels":
                forward.append(last_json("tests.benchmarks.peers.forward_alone", images / "0000.parquet"))
            figures = {"bare": bare[-1], "ours": ours[-1], "ray_data": ray_data[-1:], "forward": forward[-1:]}
            print(json.dumps(figures), flush=True)

    result = summarize(ours, bare, ray_data)
    if forward:
        result["forward_alone"] = round(statistics.median(run["images_per_second"] for run in forward))
        result["steady_to_forward_alone"] = round(
            statistics.median(
                run["steady"] / peer["images_per_second"] for run, peer in zip(ours, forward, strict=True)
            ),
            2,
        )
        result["microseconds_an_image"] = {
            stage: statistics.median(run["stages"][stage] for run in forward) for stage in forward[0]["stages"]
        }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[f"{arguments.layout}, {arguments.files} files"] = result
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def summarize(ours: list[dict[str, Any]], bare: list[dict[str, Any]], ray_data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the runs and of their ratios."""
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpus": os.cpu_count(),
        "images": ours[0]["images"],
        "ours": {name: round(statistics.median(run[name] for run in ours), 2) for name in ours[0]},
        "bare_loop": round(statistics.median(run["images_per_second"] for run in bare)),
        "steady_to_bare_loop": round(
            statistics.median(run["steady"] / peer["images_per_second"] for run, peer in zip(ours, bare, strict=True)),
            2,
        ),
    }
    if ray_data:
        result["ray_data"] = round(statistics.median(run["images_per_second"] for run in ray_data))
        ratios = [run["job"] / peer["images_per_second"] for run, peer in zip(ours, ray_data, strict=True)]
        result["job_to_ray_data"] = round(statistics.median(ratios), 2)
    return result


if __name__ == "__main__":
    main()
