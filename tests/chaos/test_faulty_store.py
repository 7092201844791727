"""Train and classify while requests to the store fail, then check what is in the store."""

import pytest

from flows.parameters import ClassifyParameters, RecipeParameters, RunParameters, TrainParameters
from infra.errors import JobError
from infra.storage.checkpoints import list_checkpoints, list_runs, read_files, read_record
from infra.storage.datasets import read_dataset
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import read_books
from tests.chaos.conftest import FaultyStore
from tests.harness.tables import check_committed_batches

pytest_plugins = ["tests.harness.gateways"]

SHARE = 0.2
"""Share of the requests that fail."""


@pytest.mark.rounds(full=20, short=2)
def test_main_job_succeeds_over_a_failing_store(running_services: None, faulty_store: FaultyStore, seed: int) -> None:
    from flows.train_and_classify import train_and_classify

    with faulty_store.without_proxy() as store:
        before = ModelRegistry(store).versions()
    faulty_store.faults.begin(seed, SHARE)
    try:
        summary = train_and_classify(
            TrainParameters(preset="quick", workers="1", recipe=RecipeParameters(epochs=2, seed=seed))
        )
    finally:
        print(f"seed {seed}: {faulty_store.faults.requests.total()} requests, {dict(faulty_store.faults.faults)}")
        faulty_store.faults.begin(0, 0.0)

    with faulty_store.without_proxy() as store:
        check_checkpoints(store)
        check_versions(store, [*before, len(before) + 1])
        check_books(store)
        assert summary.training.registration.version.version == len(before) + 1
        assert summary.checked.images == 10_000
        assert summary.checked.correct == summary.training.result.correct


def test_checkpoint_that_cannot_be_written_fails_the_run_with_the_stores_message(
    running_services: None, faulty_store: FaultyStore
) -> None:
    from flows.train import train

    faulty_store.faults.begin(0, 0.0)
    with faulty_store.without_proxy() as store:
        runs, versions = set(list_runs(store)), ModelRegistry(store).versions()
    faulty_store.faults.refuse_writes_to = "epoch-0002/"
    try:
        with pytest.raises(JobError) as failure:
            train(TrainParameters(preset="quick", workers="1", recipe=RecipeParameters(epochs=3)))
        refused = faulty_store.faults.faults["refused write"]
    finally:
        faulty_store.faults.begin(0, 0.0)

    assert "InternalError by the proxy" in str(failure.value)
    assert faulty_store.root in str(failure.value)
    assert refused >= 8  # it was retried
    with faulty_store.without_proxy() as store:
        [run_id] = set(list_runs(store)) - runs
        assert f"--resume {run_id}" in str(failure.value)
        assert list_checkpoints(store, run_id) == [1]
        assert ModelRegistry(store).versions() == versions
        train(TrainParameters(workers="1", run=RunParameters(resume=run_id)))
        assert list_checkpoints(store, run_id) == [1, 2, 3]


def test_number_of_requests_grows_with_shards_and_not_with_images(
    running_services: None, faulty_store: FaultyStore
) -> None:
    from flows.classify import classify
    from flows.train import train

    faulty_store.faults.begin(0, 0.0)
    with faulty_store.without_proxy() as store:
        if ModelRegistry(store).alias("champion") is None:
            train(TrainParameters(preset="quick", workers="1", recipe=RecipeParameters(epochs=1)))
        dataset = read_dataset(store, "fashion-mnist")
        assert dataset is not None
        inputs = [store.uri(key) for key in dataset.splits["train"].parts]
    faulty_store.faults.begin(0, 0.0)

    [books] = classify(ClassifyParameters(inputs=inputs, table="requests")).batches

    assert books.predicted == 60_000
    print(f"{faulty_store.faults.requests.total()} requests: {dict(faulty_store.faults.requests)}")
    assert faulty_store.faults.requests.total() < 300


def check_checkpoints(store: ObjectStore) -> None:
    """Check that every listed checkpoint can be read, and that each run has all of its epochs."""
    for run_id in list_runs(store):
        epochs = list_checkpoints(store, run_id)
        assert epochs in ([1, 2], [1, 2, 3])
        for epoch in epochs:
            files = read_files(store, read_record(store, run_id, epoch))
            assert set(files) == {"model.safetensors", "trainer.pt"}


def check_versions(store: ObjectStore, expected: list[int]) -> None:
    """Check that versions have no gaps, each has its own run, and the aliases point to existing versions."""
    registry = ModelRegistry(store)
    assert registry.versions() == expected
    runs = [registry.version(number).run_id for number in expected]
    assert len(set(runs)) == len(runs)
    for alias in ("champion", "candidate"):
        record = registry.alias(alias)
        assert record is not None
        assert record.version in expected


def check_books(store: ObjectStore) -> None:
    """Check that every image of every batch is in exactly one row."""
    books = read_books(store, "fashion-mnist-test")
    assert len({entry.model_version for entry in books}) == len(books)
    assert all(entry.planned == 10_000 for entry in books)
    check_committed_batches(store, "fashion-mnist-test")
