"""Measure the time and memory of planning millions of small objects, from an S3 listing to a written plan.

    python -m tests.benchmarks.planning [--objects 1000000 10000000]

A simulated server provides the listing. It runs in a separate process and answers ListObjectsV2 with generated pages of
1,000 keys. Everything else is real: the SDK, the staging on disk, the comparison with an earlier batch, the cut into
shards, and the plan in a store. Each number of objects is planned twice, each time in a new process. The first plan
starts from nothing, and the second finds 1,000 more objects than the first. The results are written to
tests/benchmarks/results/planning.json.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.scale.simulated_bucket import BUCKET, in_a_process, simulated_bucket

RESULTS = Path(__file__).parent / "results" / "planning.json"


def plan(folder: str, results: Any) -> None:
    """Plan everything in the bucket, and report the seconds and the peak memory of this process."""
    from infra.provenance import Provenance
    from infra.storage.model_registry import ModelVersion
    from infra.storage.object_store import open_store
    from tasks.classification.options import ReadOptions
    from tasks.classification.plan import plan_inputs

    model = ModelVersion(
        name="fashion-mnist",
        version=1,
        run_id="run",
        epoch=1,
        weights_sha256="0" * 64,
        metrics={},
        parameters={},
        data_version="simulated",
        provenance=Provenance.now(),
    )
    scratch = Path(folder) / f"scratch-{os.getpid()}"
    scratch.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    work = plan_inputs(
        open_store(f"file://{folder}/store"),
        [BUCKET],
        table="planned",
        model=model,
        options=ReadOptions(),
        scratch=scratch,
    )
    results.put(
        {
            "planned": work.plans[-1].planned,
            "shards": work.plans[-1].shards,
            "seconds": round(time.perf_counter() - began, 1),
            "imports_mib": round(before / 1024),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
    )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[1_000_000, 10_000_000])
    arguments = parser.parse_args()

    figures = []
    with simulated_bucket() as objects:
        for count in arguments.objects:
            with tempfile.TemporaryDirectory() as folder:
                objects.value = count
                anew = in_a_process(plan, folder)
                objects.value = count + 1000
                figures.append({"objects": count, "anew": anew, "with_1000_more": in_a_process(plan, folder)})
                print(json.dumps(figures[-1]))
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count(), "planning": figures}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
