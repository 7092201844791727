"""How many classifiers a cluster has room for, and what Ray is told that each takes."""

from typing import Any

import pytest

from flows.parameters import ClassifyParameters, ResourceParameters
from infra.cluster.resources import ActorResources


@pytest.mark.parametrize(
    ("resources", "has_gpus", "options"),
    [
        (ActorResources(), False, {"num_cpus": 1.0, "num_gpus": 0.0}),
        (ActorResources(), True, {"num_cpus": 1.0, "num_gpus": 1.0}),
        (ActorResources(gpus=0.25), True, {"num_cpus": 1.0, "num_gpus": 0.25}),
        (ActorResources(gpus=0), True, {"num_cpus": 1.0, "num_gpus": 0}),
        (ActorResources(gpus=2), False, {"num_cpus": 1.0, "num_gpus": 2}),
        (ActorResources(cpus=0.5), False, {"num_cpus": 0.5, "num_gpus": 0.0}),
        (ActorResources(memory_bytes=2**30), False, {"num_cpus": 1.0, "num_gpus": 0.0, "memory": 2**30}),
    ],
)
def test_options_are_rays(resources: ActorResources, has_gpus: bool, options: dict[str, Any]):
    assert resources.options(has_gpus=has_gpus) == options


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "room"),
    [
        (ActorResources(), 16, 0, 16),
        (ActorResources(), 16, 4, 4),
        (ActorResources(), 2, 8, 2),
        (ActorResources(cpus=4), 16, 0, 4),
        (ActorResources(cpus=3), 16, 0, 5),
        (ActorResources(cpus=0.5), 2, 0, 4),
        (ActorResources(cpus=0.2), 1, 0, 5),
        (ActorResources(gpus=0.1), 64, 1, 10),
        (ActorResources(gpus=0.25), 64, 4, 16),
        (ActorResources(cpus=2, gpus=0), 16, 4, 8),
        (ActorResources(cpus=0, gpus=0.5), 1, 4, 8),
        (ActorResources(most=3), 16, 0, 3),
        (ActorResources(most=30), 16, 0, 16),
    ],
)
def test_room_is_what_is_scarcest(resources: ActorResources, cpus: float, gpus: float, room: int):
    assert resources.room(cpus=cpus, gpus=gpus) == room


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (1, 0), (64, 0), (0, 1)])
def test_cluster_without_room_yet_is_asked_for_one(cpus: float, gpus: float):
    assert ActorResources(cpus=2, gpus=1).room(cpus=cpus, gpus=gpus) == 1


def test_actors_that_take_nothing_are_no_more_than_were_asked_for():
    assert ActorResources(cpus=0, gpus=0, most=7).room(cpus=2, gpus=0) == 7


def test_parameters_that_are_left_out_are_one_cpu_and_a_gpu_where_there_is_one():
    assert ClassifyParameters().actor_resources() == ActorResources()


def test_parameters_become_resources():
    resources = ResourceParameters(worker_cpus=2, worker_gpus=0.5, worker_memory_gib=1.5, max_workers=9)
    assert ClassifyParameters(resources=resources).actor_resources() == ActorResources(
        cpus=2, gpus=0.5, memory_bytes=3 * 2**29, most=9
    )
