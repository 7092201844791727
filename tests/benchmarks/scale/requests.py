"""Count the S3 requests per file, per shard and for the report, with a proxy in front of the server."""

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.benchmarks.classification import make_model
from tests.benchmarks.scale.runs import SHARD_IMAGES, run_flow, write_images
from tests.harness.s3_server import Exchange, S3Server, faulty_proxy

FEW, MANY = 20, 120
"""Numbers of files. The report reads 20 images, so more files cause no more requests from it."""


def measure_requests() -> dict[str, Any]:
    """Measure the requests that 100 more files, and 100 more shards, cause."""
    root = os.environ.get("FMNIST_STORE", "")
    if not root.startswith("s3://"):
        raise SystemExit('S3 is needed: eval "$(make -s s3-up)"')
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    own = f"{prefix}/scale-{uuid4().hex[:8]}".lstrip("/")
    with tempfile.TemporaryDirectory() as folder:
        settings = {"FMNIST_STORE": f"s3://{bucket}/{own}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
        make_model(settings["FMNIST_STORE"])
        for files in (FEW, MANY):
            _upload(write_images(Path(folder) / str(files), files, SHARD_IMAGES), bucket, f"{own}/images-{files}")
        few, many = (f"s3://{bucket}/{own}/images-{files}/" for files in (FEW, MANY))
        counted = {
            "few files, as many shards": _counted(few, settings, "files", report=False),
            "many files, as many shards": _counted(many, settings, "files", report=False),
            "many files, one shard": _counted(many, settings, "planned", report=False),
            "few files, with report": _counted(few, settings, "files", report=True),
            "many files, with report": _counted(many, settings, "files", report=True, table="killed"),
        }
        found = _count_finding(settings["FMNIST_STORE"], "killed")
    bare, one_shard = counted["many files, as many shards"], counted["many files, one shard"]
    by_file_and_shard = _less(bare, counted["few files, as many shards"], MANY - FEW)
    by_shard = _less(bare, one_shard, MANY - 1)
    return {
        "runs": counted,
        "by_shard": by_shard,
        "by_file": _less(by_file_and_shard, by_shard, 1),
        "report_of_20_shards": _less(counted["few files, with report"], counted["few files, as many shards"], 1),
        "report_of_120_shards": _less(counted["many files, with report"], bare, 1),
        "by_shard_found": {name: round(count / MANY, 2) for name, count in sorted(found.items())},
    }


def _less(more: dict[str, Any], less: dict[str, Any], units: int) -> dict[str, float]:
    """Return the difference of two counts, per unit."""
    names = sorted(more.keys() | less.keys())
    return {name: round((more.get(name, 0) - less.get(name, 0)) / units, 2) for name in names}


def _counted(
    images: str, settings: dict[str, str], mode: str, *, report: bool, table: str | None = None
) -> dict[str, int]:
    counted: Counter[str] = Counter()
    with faulty_proxy(server_of_environment(), before=lambda exchange: count_request(exchange, counted)) as proxy:
        name = table or f"counted-{uuid4().hex[:8]}"
        run_flow(images, name, settings | proxy.environment, each_file_a_shard=mode == "files", report=report)
    return dict(sorted(counted.items()))


def _count_finding(root: str, table: str) -> Counter[str]:
    """Count the requests with which a run finds the finished shards of an unfinished batch, and checks their parts."""
    from infra.storage.object_store import open_store
    from infra.storage.tables.planning.batches import list_batches
    from infra.storage.tables.planning.plan import find_plan
    from infra.storage.tables.records import damaged_shards, read_records

    store = open_store(root)
    [entry] = list_batches(store, table)
    plan = find_plan(store, table, entry.batch)
    assert plan is not None
    counted: Counter[str] = Counter()
    before = os.environ["AWS_ENDPOINT_URL"]
    with faulty_proxy(server_of_environment(), before=lambda exchange: count_request(exchange, counted)) as proxy:
        os.environ |= proxy.environment
        store = open_store(root)
        counted.clear()
        records = read_records(store, plan)
        assert len(records) == plan.shards
        assert not damaged_shards(store, plan, records.values())
    os.environ["AWS_ENDPOINT_URL"] = before
    return counted


def server_of_environment() -> S3Server:
    """Return the server that the AWS variables of this process point to."""
    return S3Server({name: value for name, value in os.environ.items() if name.startswith("AWS_")})


def count_request(exchange: Exchange, counted: Counter[str]) -> None:
    """Count a request by its method. A listing counts as LIST because S3 prices it separately from a GET."""
    method = "LIST" if exchange.method == "GET" and "list-type=2" in exchange.path else exchange.method
    counted[method] += 1


def _upload(folder: Path, bucket: str, prefix: str) -> None:
    import boto3

    client = boto3.client("s3")
    for path in sorted(folder.iterdir()):
        client.upload_file(str(path), bucket, f"{prefix}/{path.name}")
