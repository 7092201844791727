"""What was asked for becomes a number of workers that the machine can hold, or one clear refusal."""

import re

import pytest

from infra.errors import RequestError
from tasks.training.worker_count import WorkerRange, choose_workers


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"), [(1, 0, 1), (2, 0, 2), (64, 0, 2), (16, 1, 1), (16, 4, 4), (2, 8, 8), (0, 3, 3)]
)
def test_auto_is_a_worker_a_gpu_or_two_on_cpus(cpus: int, gpus: int, expected: int):
    assert choose_workers("auto", cpus=cpus, gpus=gpus) == WorkerRange(expected, expected)


@pytest.mark.parametrize(("by_now", "expected"), [(0, 1), (3, 3)])
def test_auto_has_a_cluster_grow_to_one_gpu(by_now: int, expected: int):
    assert choose_workers("auto", cpus=64, gpus=8, gpus_by_now=by_now) == WorkerRange(expected, expected)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("1", WorkerRange(1, 1)),
        ("4", WorkerRange(4, 4)),
        ("1:4", WorkerRange(1, 4)),
        ("3:3", WorkerRange(3, 3)),
        ("2:100", WorkerRange(2, 100)),
    ],
)
def test_number_or_range_is_taken_as_asked(requested: str, expected: WorkerRange):
    assert choose_workers(requested, cpus=4, gpus=0) == expected


def test_gpus_hold_workers_where_there_are_fewer_cpus():
    assert choose_workers("4", cpus=1, gpus=4) == WorkerRange(4, 4)


@pytest.mark.parametrize("requested", ["0", "-1", "0:2", "-1:2"])
def test_fewer_than_one_worker_is_refused(requested: str):
    with pytest.raises(RequestError, match=f"^--workers: {requested.partition(':')[0]} workers can't train"):
        choose_workers(requested, cpus=4, gpus=0)


@pytest.mark.parametrize("requested", ["3:2", "1:0", "1:-1"])
def test_range_that_ends_before_it_begins_is_refused(requested: str):
    with pytest.raises(RequestError, match=f"^--workers: the range {requested} ends before it begins"):
        choose_workers(requested, cpus=4, gpus=0)


@pytest.mark.parametrize("requested", ["3", "3:5"])
def test_more_workers_than_cpus_are_refused_with_both_numbers(requested: str):
    with pytest.raises(
        RequestError, match=r"^--workers: 3 workers need 3 CPUs or GPUs, but there are 2 CPUs and 1 GPUs"
    ):
        choose_workers(requested, cpus=2, gpus=1)


@pytest.mark.parametrize("requested", ["", "two", "1.5", "1:", ":2", "1:2:3", " 2", "2\n", "AUTO", "--2", "1e3"])
def test_what_is_no_number_is_refused_as_it_was_written(requested: str):
    with pytest.raises(RequestError, match=f"^--workers: {re.escape(repr(requested))} is neither a number"):
        choose_workers(requested, cpus=4, gpus=0)


@pytest.mark.parametrize("requested", ["auto", "1"])
def test_machine_without_cpu_and_gpu_is_refused(requested: str):
    with pytest.raises(RequestError, match=r"^--workers: "):
        choose_workers(requested, cpus=0, gpus=0)


@pytest.mark.parametrize("requested", ["2", "1:4"])
def test_range_is_written_as_it_is_asked_for(requested: str):
    assert str(choose_workers(requested, cpus=4, gpus=0)) == requested


def test_cluster_whose_nodes_have_not_joined_is_told_of() -> None:
    with pytest.raises(RequestError, match=r"there are 0 CPUs and 0 GPUs\. Wait until its nodes have joined"):
        choose_workers("2", cpus=0, gpus=0)
