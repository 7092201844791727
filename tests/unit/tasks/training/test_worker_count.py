"""A requested number of workers becomes a range that fits the machine, or an error that says why it doesn't."""

import pytest

from infra.errors import RequestError
from tasks.training.worker_count import WorkerRange, choose_workers


def refusal(requested: str, *, cpus: int, gpus: int) -> str:
    """The error for a request, which names the option."""
    with pytest.raises(RequestError) as error:
        choose_workers(requested, cpus=cpus, gpus=gpus)
    assert str(error.value).startswith("--workers: ")
    return str(error.value)


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"), [(1, 0, 1), (2, 0, 2), (64, 0, 2), (16, 1, 1), (16, 4, 4), (2, 8, 8), (0, 3, 3)]
)
def test_auto_is_one_worker_per_gpu_or_two_on_cpus(cpus: int, gpus: int, expected: int):
    assert choose_workers("auto", cpus=cpus, gpus=gpus) == WorkerRange(expected, expected)


@pytest.mark.parametrize(("by_now", "expected"), [(0, 1), (3, 3)])
def test_auto_makes_a_cluster_grow_to_one_gpu(by_now: int, expected: int):
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
def test_number_or_range_is_used_as_requested(requested: str, expected: WorkerRange):
    assert choose_workers(requested, cpus=4, gpus=0) == expected


def test_gpus_hold_workers_if_there_are_fewer_cpus():
    assert choose_workers("4", cpus=1, gpus=4) == WorkerRange(4, 4)


@pytest.mark.parametrize("requested", ["0", "-1", "0:2", "-1:2"])
def test_fewer_than_one_worker_is_refused(requested: str):
    assert requested.partition(":")[0] in refusal(requested, cpus=4, gpus=0)


@pytest.mark.parametrize("requested", ["3:2", "1:0", "1:-1"])
def test_reversed_range_is_refused(requested: str):
    assert requested in refusal(requested, cpus=4, gpus=0)


@pytest.mark.parametrize("requested", ["3", "3:5"])
def test_error_about_too_many_workers_has_all_numbers(requested: str):
    error = refusal(requested, cpus=2, gpus=1)
    assert all(words in error for words in ("3 workers", "2 CPUs", "1 GPUs"))


@pytest.mark.parametrize("requested", ["", "two", "1.5", "1:", ":2", "1:2:3", " 2", "2\n", "AUTO", "--2", "1e3"])
def test_invalid_number_is_quoted_in_the_error(requested: str):
    assert repr(requested) in refusal(requested, cpus=4, gpus=0)


@pytest.mark.parametrize("requested", ["auto", "1", "2"])
def test_cluster_without_cpus_and_gpus_is_refused(requested: str):
    assert "`ray status`" in refusal(requested, cpus=0, gpus=0)


@pytest.mark.parametrize("requested", ["2", "1:4"])
def test_range_is_printed_as_it_was_requested(requested: str):
    assert str(choose_workers(requested, cpus=4, gpus=0)) == requested
