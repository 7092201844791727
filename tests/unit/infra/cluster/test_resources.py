"""Count how many workers fit into a cluster, and what Ray reserves for each."""

from typing import Any

import pytest

from infra.cluster.resources import ActorResources


@pytest.mark.parametrize(
    ("resources", "has_gpus", "options"),
    [
        (ActorResources(), False, {"num_cpus": 1.0, "num_gpus": 0.0}),
        (ActorResources(), True, {"num_cpus": 1.0, "num_gpus": 1.0}),
        (ActorResources(worker_gpus=0.25), True, {"num_cpus": 1.0, "num_gpus": 0.25}),
        (ActorResources(worker_gpus=0), True, {"num_cpus": 1.0, "num_gpus": 0}),
        (ActorResources(worker_gpus=2), False, {"num_cpus": 1.0, "num_gpus": 2}),
        (ActorResources(worker_cpus=0.5), False, {"num_cpus": 0.5, "num_gpus": 0.0}),
        (ActorResources(worker_memory_gib=1.5), False, {"num_cpus": 1.0, "num_gpus": 0.0, "memory": 3 * 2**29}),
    ],
)
def test_options_reserve_one_worker(resources: ActorResources, has_gpus: bool, options: dict[str, Any]):
    assert resources.options(has_gpus=has_gpus) == options


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "room"),
    [
        (ActorResources(), 16, 0, 16),
        (ActorResources(), 16, 4, 4),
        (ActorResources(), 2, 8, 2),
        (ActorResources(worker_cpus=4), 16, 0, 4),
        (ActorResources(worker_cpus=3), 16, 0, 5),
        (ActorResources(worker_cpus=0.5), 2, 0, 4),
        (ActorResources(worker_cpus=0.2), 1, 0, 5),
        (ActorResources(worker_gpus=0.1), 64, 1, 10),
        (ActorResources(worker_gpus=0.25), 64, 4, 16),
        (ActorResources(worker_cpus=2, worker_gpus=0), 16, 4, 8),
        (ActorResources(worker_cpus=0, worker_gpus=0.5), 1, 4, 8),
        (ActorResources(max_workers=3), 16, 0, 3),
        (ActorResources(max_workers=30), 16, 0, 16),
    ],
)
def test_scarcest_resource_limits_the_room(resources: ActorResources, cpus: float, gpus: float, room: int):
    assert resources.room(cpus=cpus, gpus=gpus) == room


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (1, 0), (64, 0), (0, 1)])
def test_cluster_without_free_resources_still_has_room_for_one(cpus: float, gpus: float):
    assert ActorResources(worker_cpus=2, worker_gpus=1).room(cpus=cpus, gpus=gpus) == 1


def test_workers_that_reserve_nothing_are_limited_by_max_workers():
    assert ActorResources(worker_cpus=0, worker_gpus=0, max_workers=7).room(cpus=2, gpus=0) == 7
