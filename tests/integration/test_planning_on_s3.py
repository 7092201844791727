"""Planning on S3 takes a bounded number of requests, no matter how many batches the table has."""

from collections import Counter
from pathlib import Path

import pytest

from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.planning.batches import read_catalog
from infra.storage.tables.planning.index_compaction import compact_index
from tasks.classification.plan import plan_inputs
from tests.harness.s3_server import Exchange, S3Server, faulty_proxy
from tests.unit.infra.storage.tables.numbered_batches import add_batches, commit_batches
from tests.unit.tasks.classification.image_inputs import OPTIONS, model_version, touch

pytest_plugins = ["tests.harness.gateways"]

MAX_REQUESTS = 200
"""For up to 10,000 batches, as the docstring of `plan_inputs` says."""


def count_requests(
    server: S3Server, root: str, monkeypatch: pytest.MonkeyPatch, folder: Path, *, batches: int
) -> Counter[str]:
    """Count the requests for planning one new image, by method, without those for Delta's log."""
    image, scratch = folder / f"new-{batches}.png", folder / f"scratch-{batches}"
    touch(folder, image.name)
    scratch.mkdir()
    counted: Counter[str] = Counter()

    def count(exchange: Exchange) -> None:
        if "_delta_log" not in exchange.path:
            counted[exchange.method] += 1

    with faulty_proxy(server, before=count) as proxy, monkeypatch.context() as patched:
        proxy.use(patched)
        store = open_store(root)
        store.check_conditional_writes()
        counted.clear()
        work = plan_inputs(store, [str(image)], table="t", model=model_version(1), options=OPTIONS, scratch=scratch)
    assert [(plan.number, plan.planned) for plan in work.plans] == [(batches + 1, 1)]
    return counted


def grow(store: ObjectStore, folder: Path, first: int, last: int) -> None:
    """Add committed batches, and bring the index up to date."""
    commit_batches(store, add_batches(store, range(first, last + 1), folder))
    compact_index(store, read_catalog(store, "t"), folder)


@pytest.mark.slow  # writes the books of many batches through a server
def test_requests_for_planning_are_bounded(
    moto_server: S3Server, moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    few, many = 47, 431  # both have the longest tail, 15 batches
    grow(moto_store, tmp_path, 1, few)
    assert count_requests(moto_server, moto_store.root, monkeypatch, tmp_path, batches=few).total() <= MAX_REQUESTS
    commit_batches(moto_store, read_catalog(moto_store, "t").unfinished)
    grow(moto_store, tmp_path, few + 2, many)
    assert count_requests(moto_server, moto_store.root, monkeypatch, tmp_path, batches=many).total() <= MAX_REQUESTS
