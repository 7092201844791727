"""Measure what classification costs per listed object, file, shard and worker, for docs/scale.md.

    python -m tests.benchmarks.scale --planning 100000 1000000 10000000
    python -m tests.benchmarks.scale --comparison 1000000 10000000
    python -m tests.benchmarks.scale --batches 100 1000
    python -m tests.benchmarks.scale --new-image 100 10000
    python -m tests.benchmarks.scale --shards 100 1000 10000
    python -m tests.benchmarks.scale --images 1000000 10000000
    python -m tests.benchmarks.scale --dispatch 2 10 50 1000
    eval "$(make -s s3-up)"; python -m tests.benchmarks.scale --requests --batches 100 1000
    python -m tests.benchmarks.scale --table

These costs come on top of the work on the images. All commands except the last measure and add to
tests/benchmarks/results/scale.json. The last one prints the tables of docs/scale.md from that file.
"""

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "scale.json"


def main() -> None:
    """Run the requested measurements and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planning", type=int, nargs="+", default=[], metavar="OBJECTS")
    parser.add_argument("--comparison", type=int, nargs="+", default=[], metavar="OBJECTS")
    parser.add_argument("--batches", type=int, nargs="+", default=[])
    parser.add_argument("--new-image", type=int, nargs="+", default=[], metavar="BATCHES")
    parser.add_argument("--shards", type=int, nargs="+", default=[])
    parser.add_argument("--images", type=int, nargs="+", default=[])
    parser.add_argument("--dispatch", type=int, nargs="+", default=[], metavar="IN_FLIGHT")
    parser.add_argument("--requests", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()

    for objects in arguments.planning:
        from tests.benchmarks.scale.planning import measure_planning

        keep("planning", str(objects), measure_planning(objects))
    for objects in arguments.comparison:
        from tests.benchmarks.scale.staging import measure_comparison

        keep("comparison", str(objects), measure_comparison(objects))
    for batches in arguments.batches:
        from tests.benchmarks.scale.staging import measure_batches

        on_s3 = os.environ.get("FMNIST_STORE", "").startswith("s3://")
        with tempfile.TemporaryDirectory() as folder:
            store = os.environ["FMNIST_STORE"] if on_s3 else f"file://{folder}"
            keep("batches on S3" if on_s3 else "batches", str(batches), measure_batches(batches, store))
    for batches in arguments.new_image:
        from tests.benchmarks.scale.planning import measure_new_image

        keep("new image", str(batches), measure_new_image(batches))
    for shards in arguments.shards:
        from tests.benchmarks.scale.runs import measure_shards

        keep("shards", str(shards), measure_shards(shards))
    for images in arguments.images:
        from tests.benchmarks.scale.runs import measure_images

        keep("images", str(images), measure_images(images))
    for in_flight in arguments.dispatch:
        from tests.benchmarks.scale.dispatch import measure_dispatch

        keep("dispatch", str(in_flight), measure_dispatch(in_flight))
    if arguments.requests:
        from tests.benchmarks.scale.requests import measure_requests

        keep("requests", "s3", measure_requests())
    if arguments.table:
        from tests.benchmarks.scale.table import tables

        print(tables(json.loads(RESULTS.read_text())))


def keep(part: str, name: str, figures: dict[str, Any]) -> None:
    """Add measurements to the results and print them."""
    print(json.dumps({part: {name: figures}}), flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stamp = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count()}
    results.setdefault(part, {})[name] = stamp | figures
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
