"""Measure the classification of 20,000 loose PNG files, in a folder and on S3, against a bare loop.

    eval "$(make -s s3-up)"; python -m tests.benchmarks.loose_files [--files 20000] [--runs 3]

The bare loop keeps the same number of reads in flight. Unless FMNIST_STORE names an `s3://` store, only the folder is
measured. On S3, a separate run counts the requests with a proxy in front of the server. It also counts the requests for
as many images in Parquet. The results are written to tests/benchmarks/results/loose_files.json.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.benchmarks.classification import last_json, make_images, make_model
from tests.harness.s3_server import Exchange, S3Server, faulty_proxy

RESULTS = Path(__file__).parent / "results" / "loose_files.json"


def encoded_images(folder: Path) -> list[bytes]:
    """Return Fashion-MNIST's test images as PNG."""
    import pyarrow.parquet as pq

    make_images(folder, 1, "png")
    column = pq.read_table(folder / "0000.parquet", columns=["image"]).column("image").combine_chunks()
    return [row["bytes"] for row in column.to_pylist()]


def measure(location: str, folder: Path, runs: int, settings: dict[str, str]) -> dict[str, Any]:
    """Run both sides in turn, each run in a new process. Return medians and the median of the ratios."""
    ours, bare = [], []
    for number in range(runs):
        bare.append(last_json("tests.benchmarks.peers.bare_files", location, folder / f"bare-{number}"))
        table = f"loose-{uuid4().hex[:8]}"
        ours.append(last_json("tests.benchmarks.classification", "--ours", location, table, **settings))
        print(json.dumps({"bare": bare[-1], "ours": ours[-1]}), flush=True)
    ratios = [run["from_first_actor"] / peer["images_per_second"] for run, peer in zip(ours, bare, strict=True)]
    return {
        "from_first_actor": round(statistics.median(run["from_first_actor"] for run in ours)),
        "bare_loop": round(statistics.median(run["images_per_second"] for run in bare)),
        "ratio": round(statistics.median(ratios), 2),
    }


def count_requests(location: str, settings: dict[str, str], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Count the requests per 10,000 images of one run of the flow, by method."""
    server = S3Server({name: value for name, value in os.environ.items() if name.startswith("AWS_")})
    counted: Counter[str] = Counter()
    with faulty_proxy(server, before=lambda exchange: _count(exchange, counted, prefixes)) as proxy:
        run = last_json(
            "tests.benchmarks.classification",
            "--ours",
            location,
            f"counted-{uuid4().hex[:8]}",
            **settings,
            **proxy.environment,
        )
    share = run["images"] / 10_000
    return {name: round(count / share, 1) for name, count in sorted(counted.items())}


def _count(exchange: Exchange, counted: Counter[str], prefixes: tuple[str, ...]) -> None:
    of_inputs = any(f"/{prefix}" in exchange.path for prefix in prefixes)
    counted[f"{exchange.method} of {'inputs' if of_inputs else 'the store'}"] += 1


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpus": os.cpu_count(),
        "files": arguments.files,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        encoded = encoded_images(folder / "parquet")
        settings = {"FMNIST_STORE": f"{folder}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
        make_model(f"file://{folder}/store")
        images = folder / "images"
        images.mkdir()
        for number in range(arguments.files):
            (images / f"{number:06d}.png").write_bytes(encoded[number % len(encoded)])
        results["folder"] = measure(str(images), folder, arguments.runs, settings)
        store = os.environ.get("FMNIST_STORE", "")
        if store.startswith("s3://"):
            import boto3

            bucket, _, prefix = store.removeprefix("s3://").partition("/")
            own = f"{prefix}/benchmark-{uuid4().hex[:8]}".lstrip("/")
            root = f"s3://{bucket}/{own}"
            settings["FMNIST_STORE"] = f"{root}/store"
            make_model(settings["FMNIST_STORE"])
            client = boto3.client("s3")
            with ThreadPoolExecutor(16) as threads:
                puts = [
                    threads.submit(
                        client.put_object,
                        Bucket=bucket,
                        Key=f"{own}/images/{number:06d}.png",
                        Body=encoded[number % len(encoded)],
                    )
                    for number in range(arguments.files)
                ]
                for put in puts:
                    put.result()
            client.upload_file(str(folder / "parquet" / "0000.parquet"), bucket, f"{own}/parquet/0000.parquet")
            results["s3"] = measure(f"{root}/images/", folder, arguments.runs, settings)
            inputs = (f"{own}/images", f"{own}/parquet")
            results["requests_per_10000_loose"] = count_requests(f"{root}/images/", settings, inputs)
            results["requests_per_10000_in_parquet"] = count_requests(f"{root}/parquet/", settings, inputs)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
