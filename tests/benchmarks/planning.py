"""Seconds and memory of planning a batch of very many small objects, from a listing of S3 to a written plan.

    python -m tests.benchmarks.planning [--objects 1000000 10000000]

The listing is a simulated server's: ListObjectsV2 in pages of 1,000 keys, made up as they are asked for, in a process
of its own. All else is real: the SDK, the staging on disk, the comparison with an earlier batch, the cut into shards,
the plan in a store. Each number of objects is planned twice in a process of its own: anew, and with 1,000 objects
more than before. Writes tests/benchmarks/results/planning.json.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

RESULTS = Path(__file__).parent / "results" / "planning.json"
CONTEXT = multiprocessing.get_context("spawn")


def serve(objects: Any, port: Any) -> None:
    """Answer listings as if a bucket held `objects` images."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            first = int(query.get("continuation-token", ["0"])[0])
            end = min(objects.value, first + int(query.get("max-keys", ["1000"])[0]))
            more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < objects.value else ""
            contents = "".join(
                f"<Contents><Key>images/{number // 10_000:06d}/{number:010d}.png</Key>"
                "<LastModified>2026-11-23T08:00:00.000Z</LastModified>"
                f"<ETag>&quot;{number:032x}&quot;</ETag><Size>600</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for number in range(first, end)
            )
            body = (
                f"<ListBucketResult><IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{contents}"
                "</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.put(server.server_port)
    server.serve_forever()


def plan(folder: str, results: Any) -> None:
    """Plan everything in the bucket; seconds, and the most memory that this process had."""
    from infra.model_registry import ModelVersion
    from infra.object_store import open_store
    from infra.provenance import Provenance
    from tasks.inputs import ReadOptions
    from tasks.planning import plan_inputs

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
        ["s3://simulated/images"],
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


def in_a_process(folder: str) -> dict[str, Any]:
    """Plan in a process of its own."""
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=plan, args=(folder, results))
    process.start()
    found: dict[str, Any] = results.get(timeout=3600)
    process.join()
    return found


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[1_000_000, 10_000_000])
    arguments = parser.parse_args()

    objects, port = CONTEXT.Value("q", 0), CONTEXT.Queue()
    server = CONTEXT.Process(target=serve, args=(objects, port), daemon=True)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.get(timeout=60)}",
        "AWS_ACCESS_KEY_ID": "simulated",
        "AWS_SECRET_ACCESS_KEY": "simulated",
    }
    figures = []
    try:
        for count in arguments.objects:
            with tempfile.TemporaryDirectory() as folder:
                objects.value = count
                anew = in_a_process(folder)
                objects.value = count + 1000
                figures.append({"objects": count, "anew": anew, "with_1000_more": in_a_process(folder)})
                print(json.dumps(figures[-1]))
    finally:
        server.terminate()
        server.join()
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count(), "planning": figures}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
